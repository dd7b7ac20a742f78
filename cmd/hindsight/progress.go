package main

import (
	"fmt"
	"time"

	"github.com/hindsight-go/audit"
)

// progressEvery is how often progress is shown.
const progressEvery = 200 * time.Millisecond

// progress shows how far long work has come, on a terminal.
func (a *app) progress(format string, args ...any) {
	if !a.errTerminal || a.now().Sub(a.progressed) < progressEvery {
		return
	}
	a.progressed = a.now()
	text := fmt.Sprintf(format, args...)
	if a.width > 0 {
		text = clip(text, a.width-1)
	}
	fmt.Fprintf(a.err, "\r\x1b[K%s", text)
	a.progressing = true
}

// progressDone removes what progress has shown.
func (a *app) progressDone() {
	if a.progressing {
		fmt.Fprint(a.err, "\r\x1b[K")
	}
	a.progressing = false
}

func (a *app) revertProgress() func(audit.Progress) {
	return func(p audit.Progress) {
		of := ""
		if p.Total > 0 {
			of = fmt.Sprintf(" of %d", p.Total)
		}
		at := ""
		if p.Table != "" {
			at = " " + tableName(p.Table)
		}
		a.progress("%s%s: %d%s", p.Step, at, p.Done, of)
	}
}
