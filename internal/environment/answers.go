package environment

import (
	"net/http"
	"sync/atomic"

	"isle"
)

// Answers count what an instance has answered over HTTP through its published
// ports, by number and by name, since this server knows it.
type Answers struct {
	Instance isle.ID
	Total    int64
	// Failed are those of them with a status of 500 and more, and requests that
	// were never answered.
	Failed int64
}

// answers are those of a live instance.
type answers struct{ total, failed atomic.Int64 }

// add counts an answer with its status.
func (a *answers) add(status int) {
	a.total.Add(1)
	if status >= http.StatusInternalServerError {
		a.failed.Add(1)
	}
}

// lost counts requests that nobody answers.
func (a *answers) lost(n int) {
	a.total.Add(int64(n))
	a.failed.Add(int64(n))
}

// Answers are those of the instance that serves under a name; ok is false if none
// does. What is not HTTP/1 in the clear is not read and not counted.
func (m *Manager) Answers(ref isle.Ref) (out Answers, ok bool) {
	l := m.find(ref)
	if l == nil {
		return out, false
	}
	return Answers{l.instance, l.answers.total.Load(), l.answers.failed.Load()}, true
}
