package session

import (
	"testing"
	"time"
)

// What is much is written sooner, but while a session is synced it is not written
// at all: then it is later, whichever of both the writer hears of first.
func TestWhatIsRecordedWhileItsSessionIsSyncedIsWrittenAfterwards(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	l := begin(t, s)
	data := make([]byte, maxEarly)
	for i := range 200 {
		l.out.Lock()
		poke(s.early)
		err := l.Record(Event{Kind: Row, Data: noise(data, i)})
		time.Sleep(time.Millisecond) // the writer tries
		l.out.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); l.waiting() > 0; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatalf("event %d is not written", i)
			}
		}
	}
	l.End("gone")
}
