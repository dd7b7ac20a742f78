package main

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"runtime/debug"
	"strconv"
	"time"
)

// memory measures the peak of this process's resident memory while it drains one
// transaction of a million rows.
func memory(ctx context.Context, b *bench) error {
	client, err := b.capturing(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Sync(ctx); err != nil {
		return err
	}
	if err := client.Stop(ctx); err != nil {
		return err
	}
	n := b.n(1_000_000)
	if err := b.exec(ctx, "INSERT INTO item "+rows(1, n)); err != nil {
		return err
	}
	var took time.Duration
	before, peak, err := peakOf(func() error {
		began := time.Now()
		if err := client.Start(ctx); err != nil {
			return err
		}
		err := client.Sync(ctx)
		took = time.Since(began)
		return err
	})
	if err != nil {
		return err
	}
	b.printf("one transaction of %d rows in %s: resident memory %.1f MiB before, %.1f MiB at its peak, %.1f MiB more\n",
		n, took.Round(time.Millisecond), before, peak, peak-before)
	return nil
}

// peakOf returns the resident memory before something is done, and its peak until
// then, in MiB.
func peakOf(do func() error) (before, peak float64, err error) {
	debug.FreeOSMemory()
	if before, err = resident("VmRSS"); err != nil {
		return 0, 0, err
	}
	// The kernel starts its high-water mark anew.
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		return 0, 0, fmt.Errorf("reset the peak of resident memory: %w", err)
	}
	if err := do(); err != nil {
		return 0, 0, err
	}
	peak, err = resident("VmHWM")
	return before, peak, err
}

// resident reads a line of /proc/self/status, in MiB.
func resident(name string) (float64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("/proc/self/status has no %s", name)
	}
	kib, err := strconv.ParseFloat(string(m[1]), 64)
	return kib / 1024, err
}
