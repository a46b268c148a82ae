package airlock

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"isle"
	"isle/internal/environment"
)

const (
	maxRefused = 256 // destinations that are told apart
	maxNames   = 128 // DNS names that are told apart
	others     = "others"
	otherNames = "dns:others"

	notGranted = "not granted"
	granted    = "granted by egress"
	used       = "granted by uses"
	tooMany    = "too many connections at once"
	maxReason  = 200 // bytes
	// maxEvery is how far apart the reports of one destination get while it goes
	// on being tried: an environment must not fill the audit log, which nobody
	// may shorten.
	maxEvery    = time.Hour
	protocolDNS = "dns"
)

// doors is the account of one environment: what it may reach, and what it
// tried. However much is tried, it stays small.
type doors struct {
	instance isle.ID
	now      func() time.Time
	report   func(Refusal)
	every    time.Duration

	reporting sync.Mutex // held while report is called from flush

	mu      sync.Mutex // guards what follows
	open    []*tally   // in the order of the grants
	tried   map[door]*tally
	names   int // of tried: DNS names
	timer   *time.Timer
	stopped bool
}

type door struct{ destination, protocol string }

// A tally counts one door.
type tally struct {
	door
	granted     string // of an open one: what granted it
	stage       string // of a connection
	kind        string
	reason      string
	count       int
	active      int
	first, last time.Time
	pending     int // of count: not reported yet
	since       time.Time
	reported    time.Time
	pause       time.Duration // until it may be reported again
}

// refused counts n attempts at a destination, and reports them if it is new or
// was reported long enough ago: every, and each time twice as long, up to
// maxEvery, while it goes on.
func (d *doors) refused(destination, protocol, reason string, n int) {
	now := d.now()
	d.mu.Lock()
	t := d.tally(door{destination, protocol})
	t.reason = reason[:min(len(reason), maxReason)]
	if t.first.IsZero() {
		t.first = now
	}
	t.count += n
	t.last = now
	if t.pending == 0 {
		t.since = now
	}
	t.pending += n
	var r Refusal
	due := t.due(now)
	if due {
		r = d.take(t, now)
	} else if d.timer == nil && !d.stopped {
		d.timer = time.AfterFunc(d.every, d.flush)
	}
	d.mu.Unlock()
	if due {
		d.report(r)
	}
}

// tally finds or makes the tally of a refused door; beyond the bounds it is
// that of the others.
func (d *doors) tally(k door) *tally {
	t := d.tried[k]
	if t != nil {
		return t
	}
	switch {
	case k.destination == others || k.destination == otherNames:
	case k.protocol == protocolDNS && d.names >= maxNames:
		return d.tally(door{otherNames, protocolDNS})
	case k.protocol != protocolDNS && len(d.tried)-d.names >= maxRefused:
		return d.tally(door{others, "any"})
	}
	if k.protocol == protocolDNS {
		d.names++
	}
	t = &tally{door: k}
	d.tried[k] = t
	return t
}

// due reports whether what is pending may be reported. mu is held.
func (t *tally) due(now time.Time) bool {
	return t.reported.IsZero() || now.Sub(t.reported) >= t.pause
}

// take makes a Refusal of what is pending. mu is held.
func (d *doors) take(t *tally, now time.Time) Refusal {
	r := Refusal{Instance: d.instance, Destination: t.destination, Protocol: t.protocol, Reason: t.reason,
		Count: t.pending, First: t.since, Last: t.last}
	if t.reported.IsZero() || now.Sub(t.reported) > 2*t.pause { // it is quiet otherwise
		t.pause = d.every
	} else {
		t.pause = max(d.every, min(2*t.pause, maxEvery))
	}
	t.pending, t.reported = 0, now
	return r
}

// flush reports what is pending and due; after stop, all that is pending.
func (d *doors) flush() {
	d.reporting.Lock()
	defer d.reporting.Unlock()
	now := d.now()
	d.mu.Lock()
	d.timer = nil
	var all []Refusal
	for _, t := range d.tried {
		switch {
		case t.pending == 0:
		case d.stopped || t.due(now):
			all = append(all, d.take(t, now))
		case d.timer == nil:
			d.timer = time.AfterFunc(d.every, d.flush)
		}
	}
	d.mu.Unlock()
	slices.SortFunc(all, func(a, b Refusal) int { return a.First.Compare(b.First) })
	for _, r := range all {
		d.report(r)
	}
}

// stop reports what is pending, after which nothing is reported but by
// refused.
func (d *doors) stop() {
	d.mu.Lock()
	d.stopped = true
	if d.timer != nil {
		d.timer.Stop()
	}
	d.mu.Unlock()
	d.flush()
}

// grant sets what is open. Doors that stay keep their count.
func (d *doors) grant(grants []*grant) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var open []*tally
	for _, g := range grants {
		want := &tally{door: door{g.door(), "tcp"}, granted: granted, kind: environment.KindEgress}
		if g.connection != "" {
			want = &tally{door: door{g.door(), g.connection}, granted: used, kind: environment.KindConnection, stage: g.stage}
		}
		want.reason = want.granted
		t := d.find(want.destination)
		if t == nil || t.door != want.door || t.kind != want.kind || t.stage != want.stage {
			t = want
		}
		if !slices.Contains(open, t) && !slices.ContainsFunc(open, func(o *tally) bool { return o.door == t.door }) {
			open = append(open, t)
		}
	}
	d.open = open
}

func (d *doors) find(destination string) *tally {
	for _, t := range d.open {
		if t.destination == destination {
			return t
		}
	}
	return nil
}

// enter counts a connection through an open door; call what it returns when
// the connection ends, with why it could not be made, if so.
func (d *doors) enter(destination string) (leave func(failure string)) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.find(destination)
	if t == nil {
		return func(string) {} // no longer granted
	}
	if t.first.IsZero() {
		t.first = now
	}
	t.count++
	t.active++
	t.last = now
	return func(failure string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		t.active--
		t.reason = t.granted
		if failure != "" {
			t.reason += "; last failure: " + failure[:min(len(failure), maxReason)]
		}
	}
}

// list returns the open doors in their order, then the refused ones, the
// first tried first.
func (d *doors) list() []environment.Door {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]environment.Door, 0, len(d.open)+len(d.tried))
	add := func(t *tally, state string) {
		kind := t.kind
		if kind == "" {
			kind = environment.KindEgress
		}
		all = append(all, environment.Door{Destination: t.destination, Kind: kind, Protocol: t.protocol, Stage: t.stage, State: state, Reason: t.reason,
			Count: t.count, Active: t.active, First: t.first, Last: t.last})
	}
	for _, t := range d.open {
		add(t, "open")
	}
	for _, t := range d.tried {
		add(t, "refused")
	}
	slices.SortFunc(all[len(d.open):], func(a, b environment.Door) int {
		return cmp.Or(a.First.Compare(b.First), cmp.Compare(a.Destination, b.Destination), cmp.Compare(a.Protocol, b.Protocol))
	})
	return all
}
