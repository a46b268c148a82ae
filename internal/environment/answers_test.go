package environment

import (
	"slices"
	"testing"
)

// What is counted of a connection is each answer, once, and no header in between.
func TestStatusesOfTurns(t *testing.T) {
	var got []int
	tr := turns{status: func(status int) { got = append(got, status) }}
	tr.sent([]byte("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na"))
	if tr.owed() != 0 {
		t.Fatalf("%d answers are owed to what was sent ahead", tr.owed())
	}
	tr.answered([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Le"))
	tr.answered([]byte("ngth: 0\r\n\r\nHTTP/1.1 500 So long as it lasts\r\n\r\n"))
	if want := []int{503, 200, 500}; !slices.Equal(got, want) {
		t.Fatalf("statuses %v, want %v", got, want)
	}
	if !tr.opaque || tr.owed() != 0 {
		t.Fatalf("opaque %v, %d owed", tr.opaque, tr.owed())
	}
}

func TestAnswersThatFail(t *testing.T) {
	var a answers
	for _, status := range []int{200, 404, 499, 500, 503} {
		a.add(status)
	}
	a.lost(2)
	if a.total.Load() != 7 || a.failed.Load() != 4 {
		t.Fatalf("%d of %d failed, want 4 of 7", a.failed.Load(), a.total.Load())
	}
}
