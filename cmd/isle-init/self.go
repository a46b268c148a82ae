package main

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"isle"
	"isle/internal/initproto"
)

// A self is who this isle-init is. It becomes another when its memory, with all
// of the service, was captured and is brought back in a fork.
type self struct {
	mu         sync.Mutex // above all below
	launch     isle.ID
	secret     []byte // in a page of its own; wiped where it changes
	generation int64  // of the last Become
	hostname   string
	trust      []byte
	changed    chan struct{} // closed when it becomes another; nil while nobody asks
}

// who returns the launch and a copy of its secret, which is the caller's to
// wipe.
func (i *self) who() (isle.ID, []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.launch, append([]byte(nil), i.secret...)
}

// host is the service's hostname.
func (i *self) host() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hostname
}

// another returns a channel that is closed when this is somebody else.
func (i *self) another() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.changed == nil {
		i.changed = make(chan struct{})
	}
	return i.changed
}

// trusted are the authorities that the service trusts beside those of its image.
func (i *self) trusted() []byte {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.trust
}

// become takes what b says, and wipes b's secret and the old one.
func (i *self) become(b initproto.Become) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	defer clear(b.Secret)
	if b.Generation <= i.generation {
		return fmt.Errorf("told to become generation %d after %d", b.Generation, i.generation)
	}
	i.launch, i.generation, i.hostname = b.Launch, b.Generation, b.Hostname
	clear(i.secret)
	copy(i.secret, b.Secret)
	if len(b.Trust) > 0 {
		i.trust = b.Trust
	}
	if i.changed != nil {
		close(i.changed)
		i.changed = nil
	}
	return nil
}

// become reads a Become that came on the events connection and is that from
// then on. What the server that it had before was not told yet is dropped: it is
// told by the one that was captured. The connection is the caller's to end.
func (s *service) become(c *call, payload []byte) error {
	launch, secret := s.self.who()
	defer clear(secret)
	if launch != c.hello.Launch {
		return errors.New("told to become another on behalf of somebody else")
	}
	b, err := initproto.ParseBecome(payload, c.challenge, &c.hello, secret)
	if err != nil {
		return err
	}
	if err := s.self.become(b); err != nil {
		return err
	}
	s.spawn.rename(b.Hostname)
	if len(b.Trust) > 0 {
		if err := s.offerTrust(); err != nil {
			s.outbox.log(true, fmt.Appendf(nil, "[isle: %v]\n", err))
		}
	}
	s.outbox.restart()
	return nil
}

// rename gives what this service has started, and starts, another hostname.
// Where the driver has to do that, it has.
func (s *spawner) rename(hostname string) {
	done := make(chan struct{})
	s.work <- func() {
		_ = unix.Sethostname([]byte(hostname))
		close(done)
	}
	<-done
}
