package main

import (
	"slices"
	"strings"
	"sync"

	islev1 "isle/internal/api/isle/v1"
)

// A stepJSON says whether a build step was made or found.
type stepJSON struct {
	Service string `json:"service"`
	Step    string `json:"step"`
	Cached  bool   `json:"cached"`
	Reason  string `json:"reason,omitempty"` // why it was made: the input that changed
}

// An explanation gathers what a build says of its steps, the first of each.
type explanation struct {
	mu    sync.Mutex
	steps []stepJSON
}

// take takes in what the server says.
func (x *explanation) take(e *islev1.ProgressEvent) {
	name := e.GetStep()
	if e.GetState() != "start" && e.GetState() != "cached" || name == "fetch" || name == "resolve" || name == "send files" || strings.HasPrefix(name, "pull ") {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if slices.ContainsFunc(x.steps, func(s stepJSON) bool { return s.Service == e.GetService() && s.Step == name }) {
		return // it is verified, or goes on
	}
	s := stepJSON{Service: e.GetService(), Step: name, Cached: e.GetState() == "cached"}
	if !s.Cached {
		s.Reason = e.GetMessage()
	}
	x.steps = append(x.steps, s)
}

func (a *app) showExplanation(x *explanation) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if a.output == "json" {
		return a.json(append([]stepJSON{}, x.steps...))
	}
	var rows [][]string
	for _, s := range x.steps {
		cache := "hit"
		if !s.Cached {
			cache = "miss"
		}
		rows = append(rows, []string{s.Service, clean(s.Step), cache, clean(s.Reason)})
	}
	return table(a.stdout, "service\tstep\tcache\twhy", rows)
}
