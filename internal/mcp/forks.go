package mcp

import (
	"context"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// forksMost is how many copies one call makes at most.
const forksMost = 64

func (s *Server) addForks() {
	add(s, tool{
		name: "fork", title: "Copy a running environment", hint: adds, outside: true,
		description: "Make independent running copies of an environment as it is now, or of a snapshot of it, each with volumes of its own. All copies of one call are of the same instant, and the environment goes on. Use it to try what may destroy data: work in the copy, then call down with volumes, or compare several copies.",
	}, s.fork)
}

type forkIn struct {
	From    string  `json:"from" jsonschema:"NAME or NAME@STAGE of what is copied, or a snapshot: its digest or a tag"`
	At      string  `json:"at,omitempty" jsonschema:"copy this snapshot of the environment, by its digest or a tag, instead of what runs"`
	Name    string  `json:"name,omitempty" jsonschema:"of the copy; of several, NAME-1, NAME-2 and so on; left out, names that are free"`
	Count   int     `json:"count,omitempty" jsonschema:"how many copies, 64 at most; left out, it is 1"`
	Minutes float64 `json:"minutes,omitempty" jsonschema:"end the copies by themselves after so long; left out, it is what the file says"`
	Timeout float64 `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

type forkOut struct {
	Environments []environment `json:"environments" jsonschema:"the copies"`
}

func (v forkOut) text() string {
	var lines []string
	for _, e := range v.Environments {
		lines = append(lines, e.text())
	}
	return strings.Join(lines, "\n")
}

func (s *Server) fork(ctx context.Context, c *call, in forkIn) (forkOut, error) {
	if in.Count == 0 {
		in.Count = 1
	}
	switch {
	case in.Count < 1 || in.Count > forksMost:
		return forkOut{}, isle.Errorf(isle.Invalid, "%d copies: want 1 to %d", in.Count, forksMost)
	case in.Minutes < 0 || in.Minutes > yearMinutes:
		return forkOut{}, isle.Errorf(isle.Invalid, "for %g minutes: want more than 0, and a year at most", in.Minutes)
	case in.Name != "" && !isle.ValidName(in.Name):
		return forkOut{}, isle.Errorf(isle.Invalid, "name %q: want lower-case letters, digits and dashes, at most 40, beginning with a letter", clip(in.Name, 60)).WithHint("try %s", isle.Slug(in.Name))
	}
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return forkOut{}, err
	}
	defer cancel()
	req := &islev1.ForkRequest{From: in.From, At: in.At, Name: in.Name, Count: int32(in.Count)}
	if in.Minutes > 0 {
		req.Ttl = durationpb.New(time.Duration(in.Minutes * float64(time.Minute)))
	}
	c.say("copying %s", clip(oneLine(in.From), 80))
	list, err := s.cfg.Forks.Fork(ctx, req, c.event)
	if err != nil {
		return forkOut{}, err
	}
	out := forkOut{Environments: []environment{}}
	for _, e := range list {
		out.Environments = append(out.Environments, environmentOf(e))
	}
	return out, nil
}
