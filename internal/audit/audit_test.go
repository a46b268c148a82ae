package audit

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"isle"
)

func full() Entry {
	return Entry{
		Version: 1, Sequence: 7, Time: time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("x", 3600)),
		ID: "00000000000000000000000001", Kind: Outcome, Actor: isle.Actor{Kind: isle.Human, Name: "root"},
		OnBehalfOf: []isle.Actor{{Kind: isle.Workload, Name: "spiffe://d/p/testing/shop/web"}},
		Sessions:   []isle.ID{"00000000000000000000000002"}, Environment: "shop@testing",
		Instance: "00000000000000000000000003", Release: isle.DigestOf([]byte("r")),
		Action: isle.ActionEnvironmentExec, Resource: isle.Resource{Kind: "service", Name: "shop/web", Stage: "testing"},
		Decision: isle.Allow, Rule: "root", Result: "ok", Summary: "a <b> & \"c\" \u2028 é",
		Details: map[string]string{"z": "1", "command": "echo <&>"}, Link: "00000000000000000000000004",
		Recording: isle.DigestOf([]byte("x")), Count: 3,
	}
}

// The format is final: these bytes are leaves of a Merkle tree. If this test
// fails, the change is wrong, not the test.
func TestTheEncodingNeverChanges(t *testing.T) {
	golden := []struct {
		e    Entry
		want string
	}{
		{full(), `{"v":1,"seq":7,"time":"2026-01-02T02:04:05.678901Z","id":"00000000000000000000000001","kind":"outcome","actor":{"kind":"human","name":"root"},"on_behalf_of":[{"kind":"workload","name":"spiffe://d/p/testing/shop/web"}],"sessions":["00000000000000000000000002"],"environment":"shop@testing","instance":"00000000000000000000000003","release":"sha256:454349e422f05297191ead13e21d3db520e5abef52055e4964b82fb213f593a1","action":"environment:exec","resource":{"kind":"service","name":"shop/web","stage":"testing"},"decision":"allow","rule":"root","result":"ok","summary":"a <b> & \"c\" \u2028 é","details":{"command":"echo <&>","z":"1"},"link":"00000000000000000000000004","recording":"sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881","count":3}`},
		{
			Entry{Version: 1, Time: time.Unix(0, 0), ID: "0", Kind: Intent, Actor: isle.Actor{Kind: isle.System, Name: "ttl"}, Action: isle.ActionEnvironmentDown, Resource: isle.Resource{Kind: "environment", Name: "a"}, Decision: isle.Allow},
			`{"v":1,"seq":0,"time":"1970-01-01T00:00:00Z","id":"0","kind":"intent","actor":{"kind":"system","name":"ttl"},"action":"environment:down","resource":{"kind":"environment","name":"a"},"decision":"allow"}`,
		},
	}
	for _, g := range golden {
		got, err := g.e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != g.want {
			t.Errorf("got  %s\nwant %s", got, g.want)
		}
		back, err := Decode(got)
		if err != nil {
			t.Fatal(err)
		}
		if again, _ := back.Encode(); !bytes.Equal(again, got) {
			t.Errorf("decoded and encoded again: %s", again)
		}
	}
}

func TestOnlyTheCanonicalEncodingIsRead(t *testing.T) {
	good, err := full().Encode()
	if err != nil {
		t.Fatal(err)
	}
	s := string(good)
	for name, bad := range map[string]string{
		"space":         strings.Replace(s, `"seq":7`, `"seq": 7`, 1),
		"unknown field": strings.Replace(s, `"seq":7`, `"seq":7,"x":1`, 1),
		"twice":         strings.Replace(s, `"seq":7`, `"seq":6,"seq":7`, 1),
		"other case":    strings.Replace(s, `"seq"`, `"SEQ"`, 1),
		"escaped HTML":  strings.Replace(s, `<b>`, `\u003cb>`, 1),
		"local time":    strings.Replace(s, `02:04:05.678901Z`, `03:04:05.678901+01:00`, 1),
		"nanoseconds":   strings.Replace(s, `678901Z`, `678901234Z`, 1),
		"other version": strings.Replace(s, `"v":1`, `"v":2`, 1),
		"rest":          s + "{}",
		"empty field":   strings.Replace(s, `"count":3`, `"count":0`, 1),
		"nothing":       "",
	} {
		if bad == s {
			t.Fatalf("%s: changes nothing", name)
		}
		if _, err := Decode([]byte(bad)); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestWhatComesFromOutsideIsBounded(t *testing.T) {
	e := NewEvent(isle.Actor{Kind: isle.Workload, Name: "w"}, isle.ActionServiceExit, isle.Resource{Kind: "service", Name: "a"}, isle.Allow, strings.Repeat("é\xff", 1<<20))
	for i := range 100 {
		e = e.With(strings.Repeat("k", i), strings.Repeat([]string{"\x00", "\"", "\n", "\xff", "\u2028"}[i%5], 1<<18))
	}
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(b); err != nil {
		t.Error(err)
	}
	e.Details = map[string]string{"x": strings.Repeat("x", MaxSize)}
	if _, err := e.Encode(); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("an entry that is too long: got %v", err)
	}
}

func TestAnOutcomeSaysWhatItsIntentCameTo(t *testing.T) {
	i := NewIntent(isle.Actor{Kind: isle.Human, Name: "root"}, isle.ActionEnvironmentLaunch, isle.Resource{Kind: "environment", Name: "shop"}, "up").
		In(isle.Ref{Name: "shop", Stage: "testing"}, "i").With("a", "b")
	o := i.Outcome(isle.Errorf(isle.Failed, "no"))
	if o.Link != i.ID || o.ID == i.ID || o.Kind != Outcome || o.Result != "failed" || o.Summary != "no" || o.Environment != "shop@testing" || o.Details != nil {
		t.Errorf("%+v", o)
	}
	if r := i.Outcome(nil).Result; r != OK {
		t.Error(r)
	}
	if r := i.Outcome(errors.New("x")).Result; r != "internal" {
		t.Error(r)
	}
	if i.Unknown("").Result != Unknown {
		t.Error("unknown")
	}
}

func FuzzDecode(f *testing.F) {
	b, _ := full().Encode()
	f.Add(b)
	f.Add([]byte(`{"v":1,"time":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Decode(b)
		if err != nil {
			return
		}
		again, err := e.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("read %q, writes %q (%v)", b, again, err)
		}
	})
}
