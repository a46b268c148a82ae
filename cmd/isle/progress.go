package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/term"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// A progress shows what happens as it happens, on standard error: lines that
// rewrite themselves on a terminal, plain lines elsewhere, and with -o json one
// object per line. A plain line tells what is done, or what goes on for longer
// than patience.
type progress struct {
	w     io.Writer
	tell  func(*islev1.ProgressEvent) // instead of showing it
	also  func(*islev1.ProgressEvent) // besides showing it; nil: nothing
	lock  func(lock []byte) error     // writes the lock of a build that failed; nil: nobody does
	style progressStyle
	width int

	mu     sync.Mutex // guards what follows; the ticker draws too
	tasks  []*task    // going on, oldest first
	drawn  int        // lines on the screen below the last finished one
	column int        // width of the services' names
	stop   chan struct{}
	done   chan struct{}
}

// patience is how long a step may go on before a plain line tells of it.
const patience = 2 * time.Second

type progressStyle int

const (
	plainProgress progressStyle = iota
	liveProgress
	jsonProgress
)

// A task is one step of one service.
type task struct {
	service, step, message string
	done, total            int64
	began                  time.Time
	told                   bool // by a plain line
}

// newProgress begins to show; the caller ends it with close.
func (a *app) newProgress() *progress {
	p := &progress{w: a.stderr, width: 80, column: 8}
	if a.output == "json" {
		p.style = jsonProgress
		return p
	}
	f, ok := a.stderr.(*os.File)
	if ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		p.style = liveProgress
	}
	p.stop, p.done = make(chan struct{}), make(chan struct{})
	go p.tick(f)
	return p
}

// tick shows what goes on until close.
func (p *progress) tick(f *os.File) {
	defer close(p.done)
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-t.C:
			p.mu.Lock()
			if p.style == liveProgress {
				if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 20 {
					p.width = w
				}
				if len(p.tasks) > 0 || p.drawn > 0 {
					p.draw()
				}
			} else {
				p.tellSlow()
			}
			p.mu.Unlock()
		}
	}
}

// tellSlow prints a line for each step that goes on for long.
func (p *progress) tellSlow() {
	for _, t := range p.tasks {
		if !t.told && time.Since(t.began) > patience {
			t.told = true
			message := t.message
			if t.total > 0 {
				message = strings.TrimSpace(message + " " + bytesText(t.total))
			}
			p.line(" ", t.service, t.step, strings.TrimSpace(message+" …"))
		}
	}
}

// close ends the drawing and takes what is unfinished off the screen.
func (p *progress) close() {
	if p.stop == nil {
		return
	}
	close(p.stop)
	<-p.done
	p.stop = nil
	p.erase()
}

// event takes in what the server says.
func (p *progress) event(e *islev1.ProgressEvent) {
	if p.also != nil {
		p.also(e)
	}
	if p.tell != nil {
		p.tell(e)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.style == jsonProgress {
		b, _ := json.Marshal(struct {
			Service string `json:"service,omitempty"`
			Step    string `json:"step"`
			State   string `json:"state"`
			Message string `json:"message,omitempty"`
			Done    int64  `json:"done,omitempty"`
			Total   int64  `json:"total,omitempty"`
		}{e.GetService(), e.GetStep(), e.GetState(), e.GetMessage(), e.GetDone(), e.GetTotal()})
		fmt.Fprintf(p.w, "%s\n", b)
		return
	}
	i := p.find(e)
	switch e.GetState() {
	case "start":
		switch e.GetStep() {
		case "replace": // what replaces it tells how that went
			p.line("↻", e.GetService(), e.GetStep(), e.GetMessage())
		case "health": // its launch is done
			p.remove(p.find(&islev1.ProgressEvent{Service: e.GetService(), Step: "launch"}))
			fallthrough
		default:
			if i = p.find(e); i < 0 {
				p.tasks = append(p.tasks, &task{service: e.GetService(), step: e.GetStep(), message: e.GetMessage(), began: time.Now()})
			}
		}
	case "progress":
		if i < 0 {
			p.tasks = append(p.tasks, &task{service: e.GetService(), step: e.GetStep(), began: time.Now()})
			i = len(p.tasks) - 1
		}
		t := p.tasks[i]
		t.done, t.total = e.GetDone(), e.GetTotal()
		if e.GetMessage() != "" {
			t.message = e.GetMessage()
		}
	case "log":
		p.erase()
		for l := range strings.Lines(e.GetMessage()) {
			fmt.Fprintf(p.w, "  | %s\n", clean(strings.TrimRight(l, "\r\n")))
		}
	case "cached": // nothing happened
		p.remove(i)
	case "done", "failed":
		message := e.GetMessage()
		var took time.Duration
		if i >= 0 {
			took = time.Since(p.tasks[i].began)
			if message == "" {
				message = p.tasks[i].message
			}
			p.remove(i)
		}
		mark := "✓"
		if e.GetState() == "failed" {
			mark = "✗"
		}
		step := e.GetStep()
		if step == "health" && e.GetState() == "done" {
			step, took = "up", 0 // the message is how long it took
		}
		if took >= 100*time.Millisecond {
			message = strings.TrimSpace(fmt.Sprintf("%s (%.1fs)", message, took.Seconds()))
		}
		p.line(mark, e.GetService(), step, message)
	}
	if p.style == liveProgress {
		p.draw()
	}
}

func (p *progress) find(e *islev1.ProgressEvent) int {
	for i, t := range p.tasks {
		if t.service == e.GetService() && t.step == e.GetStep() {
			return i
		}
	}
	return -1
}

func (p *progress) remove(i int) {
	if i >= 0 {
		p.tasks = append(p.tasks[:i:i], p.tasks[i+1:]...)
	}
}

// line prints a line that stays.
func (p *progress) line(mark, service, step, message string) {
	p.erase()
	fmt.Fprintf(p.w, "%s %s\n", mark, p.describe(service, step, message))
}

// note prints a remark of the command line's own.
func (p *progress) note(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.style == jsonProgress || p.tell != nil {
		return
	}
	p.erase()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *progress) describe(service, step, message string) string {
	s := step
	if service != "" {
		p.column = max(p.column, len(service))
		s = fmt.Sprintf("%-*s %-8s", p.column, service, step)
	}
	if message != "" {
		s += "  " + message
	}
	return strings.TrimRight(strings.ReplaceAll(clean(s), "\n", " "), " ")
}

// erase takes the live lines off the screen.
func (p *progress) erase() {
	if p.drawn > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.drawn)
		p.drawn = 0
	}
}

// draw shows the live lines, at most ten.
func (p *progress) draw() {
	var b strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", p.drawn)
	}
	spin := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	mark := spin[time.Now().UnixMilli()/100%int64(len(spin))]
	n := 0
	for _, t := range p.tasks {
		if n == 10 {
			break
		}
		message := t.message
		switch {
		case t.total > 0:
			message = strings.TrimSpace(fmt.Sprintf("%s %s of %s", message, bytesText(t.done), bytesText(t.total)))
		case t.done > 0:
			message = strings.TrimSpace(fmt.Sprintf("%s %s", message, bytesText(t.done)))
		}
		line := []rune(fmt.Sprintf("%c %s  %.1fs", mark, p.describe(t.service, t.step, message), time.Since(t.began).Seconds()))
		if len(line) > p.width-1 {
			line = line[:p.width-1]
		}
		fmt.Fprintf(&b, "%s\n", string(line))
		n++
	}
	p.drawn = n
	io.WriteString(p.w, b.String())
}

// conclusion shows the progress that a call tells, until it tells something else,
// which it returns. It ends the call, unless what was made is to live as long as
// the call does: such a one ends with its context.
func conclusion[E any, P interface {
	*E
	GetProgress() *islev1.ProgressEvent
}](stream *connect.ServerStreamForClient[E], leaveOpen bool, show *progress) (*E, error) {
	for stream.Receive() {
		m := stream.Msg()
		if e := P(m).GetProgress(); e != nil {
			if lock := e.GetLock(); len(lock) > 0 && show.lock != nil {
				if err := show.lock(lock); err != nil {
					show.note("%s", cleanLine(err.Error()))
					continue
				}
			}
			show.event(e)
			continue
		}
		if leaveOpen {
			return m, nil
		}
		return m, stream.Close()
	}
	defer stream.Close()
	return nil, ended(stream.Err())
}

// ended is the error of a stream that ended without a result.
func ended(err error) error {
	if err != nil {
		return err
	}
	return isle.Errorf(isle.Unavailable, "the server ended the call without a result").WithHint("run the command again, and see `isle doctor`")
}
