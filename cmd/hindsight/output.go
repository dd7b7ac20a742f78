package main

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// cell is a field of a line: its text for people, and for CSV where that is another.
type cell struct {
	text  string
	csv   string
	style style
}

func plain(text string) cell { return cell{text: text, csv: text} }

func styled(text string, s style) cell { return cell{text: text, csv: text, style: s} }

// style is a colour of a terminal, by its number in SGR.
type style string

const (
	styleNone   style = ""
	styleBold   style = "1"
	styleDim    style = "2"
	styleRed    style = "31"
	styleGreen  style = "32"
	styleYellow style = "33"
	styleCyan   style = "36"
)

// colored reports whether colours are wanted. What is asked for on the command line
// goes before NO_COLOR.
func (a *app) colored() bool {
	switch a.flags.color {
	case "always":
		return true
	case "never":
		return false
	}
	return a.terminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
}

func (a *app) paint(text string, s style) string {
	if s == styleNone || text == "" || !a.colored() {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// printable returns a text as it is if all of it can be seen, and quoted otherwise:
// names and values must not begin lines or move the cursor of a terminal.
func printable(text string) string {
	if !utf8.ValidString(text) {
		return strconv.Quote(text)
	}
	for _, r := range text {
		if !strconv.IsPrint(r) {
			return strconv.Quote(text)
		}
	}
	return text
}

// word is a text as one argument of a command line: quoted where a shell would take it
// apart.
func word(text string) string {
	switch {
	case printable(text) != text:
		return strconv.Quote(text)
	case text != "" && !strings.ContainsAny(text, " \"'`$&|;<>()[]{}*?!~#\\"):
		return text
	case !strings.Contains(text, "'"):
		return "'" + text + "'"
	case !strings.ContainsAny(text, "\"`$!\\"):
		return `"` + text + `"`
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// clip cuts a text to a width on the screen.
func clip(text string, width int) string {
	if width <= 0 || wide(text) <= width {
		return text
	}
	return runewidth.Truncate(text, width, "…")
}

// writer is where output goes: through a pager on a terminal.
func (a *app) writer() io.Writer {
	if a.page != nil {
		return a.page
	}
	return a.out
}

// pager is a program that shows output page by page.
type pager struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser
}

// paged begins a pager, on a terminal and for people. Whoever has none sees the output
// all the same.
func (a *app) paged() {
	if !a.terminal || !a.interactive || a.flags.noPager || a.flags.output != formatTable || a.page != nil {
		return
	}
	program := a.getenv("HINDSIGHT_PAGER")
	if program == "" {
		program = a.getenv("PAGER")
	}
	if program == "" {
		if _, err := exec.LookPath("less"); err != nil {
			return
		}
		program = "less"
	}
	if program == "cat" {
		return
	}
	cmd := exec.Command("sh", "-c", program) //nolint:noctx // It ends with its input, or when who reads wants.
	cmd.Stdout, cmd.Stderr = a.out, a.err
	cmd.Env = os.Environ()
	if a.getenv("LESS") == "" {
		cmd.Env = append(cmd.Env, "LESS=FRX")
	}
	pipe, err := cmd.StdinPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	a.page = &pager{cmd: cmd, pipe: pipe}
}

func (p *pager) Write(text []byte) (int, error) { return p.pipe.Write(text) }

func (p *pager) close() error {
	_ = p.pipe.Close()
	return p.cmd.Wait()
}

// printer writes results in the format that was asked for, as they come.
type printer interface {
	// add writes one result: as cells of a line, or as a value of JSON.
	add(cells []cell, item any) error
	// close ends the output.
	close() error
}

// printer makes one. header names the columns; of a table they are shown only with
// titled. flexible are the columns that give way on a narrow terminal, first to last.
func (a *app) printer(header []string, titled bool, flexible ...int) printer {
	w := a.writer()
	switch a.flags.output {
	case formatJSON:
		return &jsonPrinter{w: w}
	case formatJSONL:
		return &linesPrinter{w: w}
	case formatCSV:
		return &csvPrinter{w: csv.NewWriter(w), header: header}
	}
	t := &tablePrinter{app: a, w: w, flexible: flexible}
	if titled {
		titles := make([]cell, len(header))
		for i, name := range header {
			titles[i] = styled(name, styleDim)
		}
		t.rows = append(t.rows, titles)
	}
	return t
}

type jsonPrinter struct {
	w io.Writer
	n int
}

func (p *jsonPrinter) add(_ []cell, item any) error {
	text, err := marshal(item, "  ")
	if err != nil {
		return err
	}
	before := ",\n  "
	if p.n == 0 {
		before = "[\n  "
	}
	p.n++
	_, err = io.WriteString(p.w, before+string(text))
	return err
}

func (p *jsonPrinter) close() error {
	end := "\n]\n"
	if p.n == 0 {
		end = "[]\n"
	}
	_, err := io.WriteString(p.w, end)
	return err
}

type linesPrinter struct{ w io.Writer }

func (p *linesPrinter) add(_ []cell, item any) error {
	text, err := marshal(item, "")
	if err != nil {
		return err
	}
	_, err = p.w.Write(append(text, '\n'))
	return err
}

func (p *linesPrinter) close() error { return nil }

// marshal is json.Marshal that leaves < and > as they are, indented below a prefix or
// on one line.
func marshal(item any, prefix string) ([]byte, error) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if prefix != "" {
		encoder.SetIndent(prefix, "  ")
	}
	if err := encoder.Encode(item); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// document writes one value as JSON, for what is no list.
func (a *app) document(item any) error {
	var text []byte
	var err error
	if a.flags.output == formatJSONL {
		text, err = marshal(item, "")
	} else {
		var b strings.Builder
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(item)
		text = []byte(strings.TrimSuffix(b.String(), "\n"))
	}
	if err != nil {
		return err
	}
	_, err = a.writer().Write(append(text, '\n'))
	return err
}

type csvPrinter struct {
	w      *csv.Writer
	header []string
	begun  bool
}

func (p *csvPrinter) begin() error {
	if p.begun {
		return nil
	}
	p.begun = true
	return p.w.Write(p.header)
}

func (p *csvPrinter) add(cells []cell, _ any) error {
	if err := p.begin(); err != nil {
		return err
	}
	record := make([]string, len(cells))
	for i, c := range cells {
		record[i] = c.csv
	}
	if err := p.w.Write(record); err != nil {
		return err
	}
	p.w.Flush()
	return p.w.Error()
}

func (p *csvPrinter) close() error {
	err := p.begin()
	p.w.Flush()
	return errors.Join(err, p.w.Error())
}

// together is how many lines have their columns aligned.
const together = 200

// tablePrinter aligns columns, together at a time.
type tablePrinter struct {
	app      *app
	w        io.Writer
	flexible []int
	rows     [][]cell
	widths   []int
	// unaligned writes each line as it comes, for what is followed.
	unaligned bool
}

func (p *tablePrinter) add(cells []cell, _ any) error {
	p.rows = append(p.rows, cells)
	if len(p.rows) >= together || p.unaligned {
		return p.flush()
	}
	return nil
}

func (p *tablePrinter) close() error { return p.flush() }

func (p *tablePrinter) flush() error {
	for _, row := range p.rows {
		for len(p.widths) < len(row) {
			p.widths = append(p.widths, 0)
		}
		for i, c := range row {
			p.widths[i] = max(p.widths[i], wide(c.text))
		}
	}
	widths := p.fit()
	var b strings.Builder
	for _, row := range p.rows {
		p.line(&b, row, widths)
	}
	p.rows = p.rows[:0]
	_, err := io.WriteString(p.w, b.String())
	return err
}

// narrowest is how narrow a column may become.
const narrowest = 8

// fit takes from the flexible columns what the terminal has not.
func (p *tablePrinter) fit() []int {
	widths := append([]int(nil), p.widths...)
	if p.app.width <= 0 {
		return widths
	}
	over := 2*(len(widths)-1) - p.app.width
	for _, w := range widths {
		over += w
	}
	for _, at := range p.flexible {
		if over <= 0 || at >= len(widths) {
			break
		}
		take := min(over, max(0, widths[at]-narrowest))
		widths[at] -= take
		over -= take
	}
	return widths
}

func (p *tablePrinter) line(b *strings.Builder, row []cell, widths []int) {
	left := p.app.width // of the terminal
	last := len(row) - 1
	for last > 0 && row[last].text == "" {
		last--
	}
	for i := 0; i <= last; i++ {
		text := clip(row[i].text, widths[i])
		if i > 0 {
			text = "  " + text
		}
		used := wide(text)
		if p.app.width > 0 && used > left {
			text, used = clip(text, left), left
		}
		left -= used
		gap, body := "", text
		if i > 0 && strings.HasPrefix(text, "  ") {
			gap, body = "  ", text[2:]
		}
		b.WriteString(gap + p.app.paint(body, row[i].style))
		if i < last {
			pad := widths[i] - wide(body)
			if p.app.width > 0 {
				pad = min(pad, left)
			}
			if pad > 0 {
				b.WriteString(strings.Repeat(" ", pad))
				left -= pad
			}
		}
		if p.app.width > 0 && left <= 0 {
			break
		}
	}
	b.WriteByte('\n')
}

// writef writes to the output.
func (a *app) writef(format string, args ...any) error {
	_, err := fmt.Fprintf(a.writer(), format, args...)
	return err
}

// wide is the width of a text on the screen.
func wide(text string) int { return runewidth.StringWidth(text) }
