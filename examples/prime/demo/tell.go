package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// Colours of a terminal.
const (
	bold  = "\x1b[1m"
	cyan  = "\x1b[36m"
	green = "\x1b[32m"
	faint = "\x1b[2m"
	plain = "\x1b[0m"
	erase = "\r\x1b[K"
)

// teller prints the story. On a terminal it uses colours, and a live line that is overwritten.
type teller struct {
	file     *os.File
	terminal bool
}

func newTeller(file *os.File, terminal bool) *teller { return &teller{file, terminal} }

func (t *teller) colour(c, text string) string {
	if !t.terminal {
		return text
	}
	return c + text + plain
}

func (t *teller) step(title, text string) {
	fmt.Fprintf(t.file, "\n%s\n", t.colour(bold, "== "+title))
	if text != "" {
		t.aside("%s", text)
	}
}

// aside explains.
func (t *teller) aside(format string, args ...any) {
	fmt.Fprintln(t.file, t.colour(faint, fmt.Sprintf(format, args...)))
}

// command shows what is typed on which machine.
func (t *teller) command(host, line string) {
	fmt.Fprintf(t.file, "%s %s\n", t.colour(cyan, host+" $"), t.colour(bold, line))
}

// seen says that something was checked and found as told.
func (t *teller) seen(format string, args ...any) {
	fmt.Fprintln(t.file, t.colour(green, "   ok  "+fmt.Sprintf(format, args...)))
}

// live shows a line that the next one replaces. Where there is no terminal, nothing is.
func (t *teller) live(line string) {
	if t.terminal {
		fmt.Fprint(t.file, erase+line)
	}
}

func (t *teller) endLive() {
	if t.terminal {
		fmt.Fprint(t.file, erase)
	}
}

// output is where a command prints. Without a terminal, progress would repeat its lines five times a second: only lines
// that say something new are let through. The function it returns prints what is left, and gives all that was printed.
func (t *teller) output() (io.Writer, func() string) {
	if t.terminal {
		return t.file, func() string { return "" } // the command finds the terminal itself
	}
	f := &filter{to: t.file}
	return f, f.end
}

// filter drops lines that only repeat the progress of the one before.
type filter struct {
	to io.Writer

	mu   sync.Mutex // guards what follows; a command's output and errors may come from two goroutines
	rest []byte
	last string
	all  bytes.Buffer
}

func (f *filter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rest = append(f.rest, p...)
	for {
		line, rest, ok := bytes.Cut(f.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		f.rest = rest
		if err := f.line(string(line)); err != nil {
			return 0, err
		}
	}
}

func (f *filter) line(line string) error {
	fmt.Fprintln(&f.all, line)
	news := line
	if strings.HasPrefix(line, "verify: Waiting") {
		news = "verify: Waiting"
	}
	if news == f.last && strings.Contains(line, ": ") {
		return nil
	}
	f.last = news
	_, err := fmt.Fprintln(f.to, line)
	return err
}

func (f *filter) end() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.rest) > 0 {
		_ = f.line(string(f.rest))
		f.rest = nil
	}
	return f.all.String()
}
