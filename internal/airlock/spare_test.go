package airlock

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"isle"
)

func TestASparePairBecomesTheNextAirlockAndNoOther(t *testing.T) {
	h := newHouse(t)
	h.enter() // from now on there is to be a spare one
	var want os.FileInfo
	for deadline := time.Now().Add(time.Minute); want == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		h.shelf.mu.Lock()
		if p := h.shelf.spare; p != nil {
			var err error
			if want, err = p.sandbox.Stat(); err != nil {
				t.Error(err)
			}
		}
		h.shelf.mu.Unlock()
	}
	if want == nil {
		t.Fatal("no spare pair was made")
	}
	grants := granting(h.granted("api.example.com"))
	var got []os.FileInfo
	for range 2 {
		ns, err := h.Open(context.Background(), isle.NewID(), grants)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(ns)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, info)
		inside(t, ns, func() error {
			a, err := addressOf("api.example.com")
			if err != nil {
				return err
			}
			if err := echo(hostPort(a, h.port)); err != nil {
				return fmt.Errorf("through the airlock: %w", err)
			}
			return nil
		})
	}
	if !os.SameFile(got[0], want) {
		t.Error("the next airlock is not the spare pair")
	}
	if os.SameFile(got[1], want) {
		t.Error("two airlocks are one")
	}
}
