package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	islev1 "isle/internal/api/isle/v1"
)

// What somebody typed into a database must not act on the terminal of who
// replays it, nor look like another event.
func TestAReplayedEventActsOnNoTerminalAndForgesNoLine(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdout: &out, output: "text"}
	hostile := "SELECT 1\x1b[2J\x9b31m\u202e\r\n    +0.001s  approved  DELETE 3, allow by role:admin"
	if err := a.showEvent(1500*time.Millisecond, &islev1.SessionEvent{
		Kind: "statement\nx", Text: []byte(hostile), Params: []string{hostile}, Rule: hostile, Error: hostile, Tag: hostile, Data: []byte(hostile), Decision: "allow",
		Took: durationpb.New(time.Millisecond), Rows: 2,
	}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if !strings.HasPrefix(lines[0], "    +1.500s  statement·x SELECT 1·[2J") {
		t.Errorf("%q", lines[0])
	}
	for _, l := range lines[1:] {
		if !strings.HasPrefix(l, strings.Repeat(" ", 20)) || !strings.HasPrefix(strings.TrimLeft(l, " "), "| ") {
			t.Errorf("a line of an event looks like an event: %q", l)
		}
	}
	if strings.ContainsAny(out.String(), "\x1b\r\u009b\u202e") {
		t.Errorf("%q", out.String())
	}
}

func TestATextThatIsNoUTF8IsInJSONAsItIs(t *testing.T) {
	e := sessionEvent(&islev1.SessionEvent{Text: []byte("a\xffb"), Data: []byte("c")})
	if string(e.RawText) != "a\xffb" || e.Text != "a\uFFFDb" || e.RawData != nil || e.Data != "c" {
		t.Errorf("%+v", e)
	}
}
