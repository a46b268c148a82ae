package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"isle/internal/allowance"
)

func TestWhoOpensSessionAfterSessionIsSlowedAndNobodyElseIs(t *testing.T) {
	g := New(Config{})
	g.fresh.Rate = allowance.Rate{Burst: 3, Every: time.Hour}
	for range 3 {
		if err := g.paced(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.paced(t.Context(), "another"); err != nil {
		t.Error(err)
	}
	gone := errors.New("the client left")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(gone) })
	if err := g.paced(ctx, "one"); !errors.Is(err, gone) {
		t.Error(err)
	}
}
