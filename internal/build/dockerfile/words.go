package dockerfile

import (
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"golang.org/x/sys/unix"
)

// maxPorts is how many ports a stage can name.
const maxPorts = 1024

// expose adds ports: 80, 80/udp, 80-89/tcp.
func (w *Walk) expose(c command, i *instructions.ExposeCommand) error {
	env := w.env()
	for _, written := range i.Ports {
		words, err := w.plan.process(written, env, c.line, func(v shell.EnvGetter) ([]string, error) { return w.lex.ProcessWords(written, v) })
		if err != nil {
			return err
		}
		for _, word := range words {
			if err := w.port(c, word); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *Walk) port(c command, word string) error {
	numbers, protocol, found := strings.Cut(word, "/")
	if protocol = strings.ToLower(protocol); !found {
		protocol = "tcp"
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	from, err1 := strconv.ParseUint(first, 10, 16)
	to, err2 := strconv.ParseUint(last, 10, 16)
	switch {
	case strings.Contains(numbers, ":"):
		return w.fail(c, "EXPOSE %s: a port of the machine is not the image's to say; name it under ports", clip(word))
	case err1 != nil || err2 != nil || from > to || protocol != "tcp" && protocol != "udp" && protocol != "sctp":
		return w.fail(c, "EXPOSE %s is no port: want 80, 80/udp or 80-89/tcp", clip(word))
	case to-from >= maxPorts:
		return w.fail(c, "EXPOSE %s: more than %d ports", clip(word), maxPorts)
	}
	for n := from; n <= to; n++ {
		port := strconv.FormatUint(n, 10) + "/" + protocol
		if !slices.Contains(w.config.Ports, port) {
			if len(w.config.Ports) >= maxPorts {
				return w.fail(c, "more than %d ports", maxPorts)
			}
			w.config.Ports = append(w.config.Ports, port)
		}
	}
	return nil
}

// stopSignal takes SIGTERM, TERM or 15.
func (w *Walk) stopSignal(c command, i *instructions.StopSignalCommand) error {
	name := strings.ToUpper(i.Signal)
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > 64 {
			return w.fail(c, "STOPSIGNAL %d is no signal", n)
		}
	} else if base, _, _ := strings.Cut(name, "+"); unix.SignalNum("SIG"+strings.TrimPrefix(base, "SIG")) == 0 && !strings.HasPrefix(strings.TrimPrefix(name, "SIG"), "RTM") {
		return w.fail(c, "STOPSIGNAL %s is no signal", clip(i.Signal))
	}
	w.config.StopSignal = i.Signal
	return nil
}

// shellText is what a RUN in shell form, with the files that are in it, gives the
// shell; or the script that it is.
func shellText(i *instructions.RunCommand) (text string, script []byte, err error) {
	text = strings.Join(i.CmdLine, " ")
	if len(i.Files) == 0 {
		return text, nil, nil
	}
	heredoc, err := parser.ParseHeredoc(text)
	if err != nil {
		return "", nil, err
	}
	if heredoc == nil { // a command that reads them: the shell's own matter
		for _, f := range i.Files {
			text += "\n" + f.Data + f.Name
		}
		return text, nil, nil
	}
	data := i.Files[0].Data
	if i.Files[0].Chomp {
		data = parser.ChompHeredocContent(data)
	}
	if strings.HasPrefix(data, "#!") {
		return "", []byte(data), nil
	}
	return data, nil, nil
}
