package build

import (
	"context"
	"sync"
	"time"

	"isle"
)

// flights lets one goroutine at a time work on a key.
type flights struct {
	mu   sync.Mutex
	busy map[isle.Digest]*flight
}

// A flight is the work on a key.
type flight struct {
	ended chan struct{} // closed when it is

	mu    sync.Mutex
	since time.Time // when it began to wait for whoever reads what it tells; zero: it does not
	deep  int       // so many tell
}

// telling is p that says how long it is in it.
func (f *flight) telling(p Progress) Progress {
	return func(e Event) {
		f.mu.Lock()
		if f.deep++; f.deep == 1 {
			f.since = time.Now()
		}
		f.mu.Unlock()
		defer func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.deep--; f.deep == 0 {
				f.since = time.Time{}
			}
		}()
		p(e)
	}
}

// stalled reports whether it waits for so long for whoever reads what it tells.
func (f *flight) stalled(patience time.Duration) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.since.IsZero() && time.Since(f.since) > patience
}

// try enters the key if nobody is in it.
func (f *flights) try(key isle.Digest) (leave func(), ok bool) {
	_, leave, ok = f.begin(key)
	return leave, ok
}

func (f *flights) begin(key isle.Digest) (mine *flight, leave func(), ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.busy[key]; other != nil {
		return other, func() {}, false
	}
	if f.busy == nil {
		f.busy = make(map[isle.Digest]*flight)
	}
	mine = &flight{ended: make(chan struct{})}
	f.busy[key] = mine
	return mine, func() {
		f.mu.Lock()
		delete(f.busy, key)
		f.mu.Unlock()
		close(mine.ended)
	}, true
}

// enter waits until nobody else is in the key, and returns the way out.
func (f *flights) enter(ctx context.Context, key isle.Digest) (leave func(), err error) {
	_, leave, err = f.wait(ctx, key, 0)
	return leave, err
}

// enterPast is enter that waits no longer where who is in the key is kept waiting
// by its own client: that one, stopped or hostile, would keep every build of the
// same waiting. What two make at once comes out the same. telling must be what the
// work tells with.
func (f *flights) enterPast(ctx context.Context, key isle.Digest, patience time.Duration, p Progress) (telling Progress, leave func(), err error) {
	mine, leave, err := f.wait(ctx, key, patience)
	if err != nil || mine == nil {
		return p, leave, err
	}
	return mine.telling(p), leave, nil
}

// wait enters the key. With some patience it goes past who is in it and stalled,
// without a flight of its own.
func (f *flights) wait(ctx context.Context, key isle.Digest, patience time.Duration) (mine *flight, leave func(), err error) {
	var look <-chan time.Time
	if patience > 0 {
		tick := time.NewTicker(max(patience/10, time.Millisecond))
		defer tick.Stop()
		look = tick.C
	}
	for {
		other, leave, ok := f.begin(key)
		if ok {
			return other, leave, nil
		}
		select {
		case <-other.ended:
		case <-look:
			if other.stalled(patience) {
				return nil, func() {}, nil
			}
		case <-ctx.Done():
			return nil, func() {}, ctx.Err()
		}
	}
}
