package allowance

import (
	"testing"
	"time"
)

func TestWhatIsLeftIsABurstAndWhatTimeBrings(t *testing.T) {
	r, now := Rate{Burst: 3, Every: 10 * time.Second}, time.Unix(1_800_000_000, 0)
	var a Allowance
	taken := func() (n int) {
		for a.Take(now, r) {
			n++
		}
		return n
	}
	if !a.Full(now, r) || taken() != 3 || a.Full(now, r) || a.Has(now, r) {
		t.Error("a burst is not what is there at first")
	}
	now = now.Add(15 * time.Second)
	if n := taken(); n != 1 {
		t.Errorf("15 s bring %d", n)
	}
	now = now.Add(5 * time.Second)
	if n := taken(); n != 1 {
		t.Errorf("five seconds after 15 bring %d: what had begun is lost", n)
	}
	now = now.Add(time.Hour)
	if n := taken(); n != 3 {
		t.Errorf("an hour brings %d, more than the burst", n)
	}
	now = now.Add(-time.Hour)
	if n := taken(); n != 0 {
		t.Errorf("a clock that is put back brings %d", n)
	}
}

func TestWhatIsSpentBeyondIsOwed(t *testing.T) {
	r, now := Rate{Burst: 10, Every: time.Second}, time.Unix(1_800_000_000, 0)
	var a Allowance
	if !a.Spend(now, r, 10) || a.Spend(now, r, 5) {
		t.Error("what there is, is not what may be spent")
	}
	now = now.Add(5 * time.Second)
	if a.Has(now, r) {
		t.Error("nothing is owed")
	}
	if now = now.Add(time.Second); !a.Take(now, r) {
		t.Error("it is owed for ever")
	}
}

func TestATableIsBoundedAndForgetsWhoHasAllAgain(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	x := Table{Rate: Rate{Burst: 2, Every: 10 * time.Second}, Max: 3}
	for _, key := range []string{"a", "b", "c", "a", "b", "c"} {
		if !x.Take(key, now) {
			t.Errorf("%s has no share of its own", key)
		}
	}
	// All places are taken by who has none left: the others have one share.
	if !x.Take("d", now) || !x.Take("e", now) || x.Take("f", now) || x.Take("a", now) {
		t.Error("those who are told apart no longer have more than one has")
	}
	if n := x.Len(); n != 3 {
		t.Errorf("%d are remembered", n)
	}
	now = now.Add(time.Minute)
	first, second, third := x.Take("f", now), x.Take("f", now), x.Take("f", now)
	if !first || !second || third || !x.Take("a", now) {
		t.Error("a newcomer has no place when others have all of theirs again")
	}
	if n := x.Len(); n != 2 {
		t.Errorf("%d are remembered a minute later", n)
	}
}
