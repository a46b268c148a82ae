package initproto

import (
	"bytes"
	"strings"
	"testing"

	"isle"
)

func becoming() Become {
	return Become{Launch: isle.NewID(), Secret: bytes.Repeat([]byte{9}, SecretSize), Hostname: "web-shop-f1", Generation: 1}
}

// tells dials as the captured launch and returns what it is told to become.
func tells(t *testing.T, h *Home, instance isle.ID, l launched) (Become, error) {
	t.Helper()
	c := connect(h, instance)
	defer c.Close()
	challenge, hello, err := c.Introduce(KindEvents, l.id, l.secret)
	if err != nil {
		return Become{}, err
	}
	b, err := c.Expect(FrameBecome)
	if err != nil {
		return Become{}, err
	}
	return ParseBecome(b, challenge, &hello, l.secret)
}

func TestAForkIsToldWhoItIsUntilItHasCalledAsThat(t *testing.T) {
	refused := make(chan Refusal, 10)
	h := NewHome(HomeConfig{Refused: func(r Refusal) { refused <- r }})
	defer h.Close()
	parent := expect(h, isle.NewID())
	parents := parent.mustDial(t, h, KindEvents)
	if err := parents.WriteJSON(FrameEvent, Event{Seq: 1, Kind: EventStarted}); err != nil {
		t.Fatal(err)
	}
	if _, err := parents.Expect(FrameAck); err != nil {
		t.Fatal(err)
	}

	fork := launched{instance: isle.NewID(), sink: &sink{}}
	b := becoming()
	fork.id, fork.secret = b.Launch, bytes.Clone(b.Secret)
	if err := h.ExpectFork(fork.instance, parent.id, isle.DigestOf(parent.secret), b, fork.sink); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as often as it has not understood
		got, err := tells(t, h, fork.instance, parent)
		if err != nil {
			t.Fatal(err)
		}
		if got.Launch != b.Launch || !bytes.Equal(got.Secret, fork.secret) || got.Hostname != b.Hostname || got.Generation != 1 {
			t.Errorf("it is told %+v", got)
		}
		work := connect(h, fork.instance)
		if err := work.Greet(KindWork, parent.id, parent.secret); err != nil {
			t.Errorf("its other connections are not met: %v", err)
		}
		if _, _, err := work.ReadFrame(); err == nil {
			t.Error("who it was got work")
		}
	}
	c := fork.mustDial(t, h, KindEvents)
	if err := c.WriteJSON(FrameEvent, Event{Seq: 7, Kind: EventStarted}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Expect(FrameAck); err != nil {
		t.Fatal(err)
	}
	if got := fork.sink.String(); got != "started" {
		t.Errorf("the fork told %s", got)
	}
	// The parent has not noticed, and no one is the parent in the fork any more.
	if err := parents.WriteJSON(FrameEvent, Event{Seq: 2, Kind: EventHealth, Healthy: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := parents.Expect(FrameAck); err != nil {
		t.Fatal(err)
	}
	if got := parent.sink.String(); got != "started; health true " {
		t.Errorf("the parent told %s", got)
	}
	if got, err := tells(t, h, fork.instance, parent); err == nil {
		t.Errorf("it is told once more: %+v", got)
	}
	if len(refused) > 0 {
		t.Errorf("refused %+v", <-refused)
	}
}

func TestNobodyElseIsToldWhoAForkIs(t *testing.T) {
	h := NewHome(HomeConfig{})
	defer h.Close()
	parent, b, instance := expect(h, isle.NewID()), becoming(), isle.NewID()
	if err := h.ExpectFork(instance, parent.id, isle.DigestOf(parent.secret), b, &sink{}); err != nil {
		t.Fatal(err)
	}
	thief := parent
	thief.secret = bytes.Repeat([]byte{1}, SecretSize)
	if _, err := tells(t, h, instance, thief); err == nil {
		t.Error("another secret is told")
	}
	if _, err := tells(t, h, isle.NewID(), parent); err == nil {
		t.Error("another instance is told")
	}
	// In its own airlock the parent is who it is.
	c := parent.mustDial(t, h, KindEvents)
	if err := c.WriteJSON(FrameEvent, Event{Seq: 1, Kind: EventStarted}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Expect(FrameAck); err != nil {
		t.Error(err)
	}
	h.Forget(b.Launch)
	if _, err := tells(t, h, instance, parent); err == nil {
		t.Error("a fork that was forgotten is told")
	}
}

func TestASecretOfAForkIsNotOnTheWire(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, SecretSize)
	seen := map[string]bool{}
	for range 3 {
		c, b := NewChallenge(), becoming()
		h := NewHello(c, KindEvents, isle.NewID(), secret)
		payload, err := b.Encode(c, &h, secret)
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(payload)] || strings.Contains(string(payload), "CQkJCQkJ") { // base64 of the secret
			t.Errorf("the wire has %s", payload)
		}
		seen[string(payload)] = true
		if got, err := ParseBecome(payload, c, &h, secret); err != nil || !bytes.Equal(got.Secret, b.Secret) {
			t.Errorf("got %v, %v", got.Secret, err)
		}
		if got, _ := ParseBecome(payload, NewChallenge(), &h, secret); bytes.Equal(got.Secret, b.Secret) {
			t.Error("it says the same on another connection")
		}
	}
}

func FuzzBecome(f *testing.F) {
	secret := bytes.Repeat([]byte{7}, SecretSize)
	c := Challenge{Version: Version}
	h := NewHello(c, KindEvents, isle.NewID(), secret)
	b, err := becoming().Encode(c, &h, secret)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"launch":"","secret":null,"generation":-1}`))
	f.Add([]byte(`{"hostname":"a\nb"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := ParseBecome(payload, c, &h, secret)
		if err != nil {
			if got.Secret != nil {
				t.Fatal("a secret in spite of an error")
			}
			return
		}
		if err := got.Check(); err != nil || strings.ContainsAny(got.Hostname, "\n\x00 /") {
			t.Fatalf("took %+v: %v", got, err)
		}
	})
}
