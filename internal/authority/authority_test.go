package authority

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"isle"
	"isle/internal/audit"
	"isle/internal/policy"
)

// memory is a Store for tests.
type memory struct {
	mu    sync.Mutex
	docs  map[string]Stored
	epoch uint64
	all   []Stored
}

func (m *memory) Policies(context.Context) (docs []Stored, epoch uint64, last audit.Entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, d := range m.docs {
		docs = append(docs, d)
	}
	if len(m.all) > 0 {
		last = m.all[len(m.all)-1].Entry
	}
	return docs, m.epoch, last, nil
}

func (m *memory) PutPolicy(_ context.Context, d Stored, epoch uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch != m.epoch+1 {
		return isle.Errorf(isle.Conflict, "epoch %d", epoch)
	}
	m.epoch, m.docs[d.Name], m.all = epoch, d, append(m.all, d)
	return nil
}

var root = isle.Actor{Kind: isle.Human, Name: "root"}

func open(t *testing.T, m *memory, reset bool) *Authority {
	t.Helper()
	a, err := Open(t.Context(), Config{Store: m, Reset: reset})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func request(body string) Request {
	return Request{Document: policy.Document{Name: "main", Format: policy.YAML, Body: []byte(body)}}
}

func may(a *Authority, who string) bool {
	return a.Decide(policy.Query{Actor: isle.Actor{Kind: isle.Human, Name: who}, Action: isle.ActionPolicyApply, Resource: resource}).Allowed()
}

func TestAFirstStartWritesTheDefaultAndLaterOnesKeepWhatIsThere(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	if len(m.all) != 1 || m.all[0].Entry.Actor.Name != "first-start" || string(m.all[0].Body) != policy.Default || !may(a, "root") || may(a, "ann") {
		t.Fatalf("%+v", m.all)
	}
	if _, err := a.Apply(t.Context(), root, request("bindings: [{role: admin, subjects: [human:ann]}]")); err != nil {
		t.Fatal(err)
	}
	a = open(t, m, false)
	if len(m.all) != 2 || may(a, "root") || !may(a, "ann") || a.State().Epoch != 2 {
		t.Fatalf("%+v", m.all)
	}
	a = open(t, m, true)
	if !may(a, "root") || may(a, "ann") || m.all[2].Entry.Actor.Name != "default-policy" {
		t.Fatal("the default policy did not come back")
	}
}

func TestAChangeWakesWhoWaitsAndIsWrittenDown(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	before := a.State()
	r, err := a.Apply(t.Context(), root, request(policy.Default+"  \n"))
	if err != nil || !r.Changed || r.Version != 2 || r.Epoch != 2 {
		t.Fatalf("%+v %v", r, err)
	}
	select {
	case <-before.Over():
	default:
		t.Error("nobody was woken")
	}
	e := m.all[1].Entry
	if e.Actor != root || e.Action != isle.ActionPolicyApply || e.Details["digest"] != string(isle.DigestOf(m.all[1].Body)) || e.Details["version"] != "2" {
		t.Errorf("%+v", e)
	}
	if r, err = a.Apply(t.Context(), root, request(policy.Default+"  \n")); err != nil || r.Changed || len(m.all) != 2 {
		t.Errorf("the same again is no change: %+v %v", r, err)
	}
}

func TestTheVersionInForceIsTheOneThatWasWritten(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	show := func() string {
		var out []string
		for _, d := range a.State().Set.Documents() {
			out = append(out, fmt.Sprintf("%s %d", d.Name, d.Version))
		}
		return strings.Join(out, ", ")
	}
	if got := show(); got != "main 1" {
		t.Errorf("after the first start: %s", got)
	}
	for _, text := range []string{"// one", "// two"} {
		if _, err := a.Apply(t.Context(), root, Request{Document: policy.Document{Name: "cedar", Format: policy.Cedar, Body: []byte(text)}}); err != nil {
			t.Fatal(err)
		}
	}
	if got := show(); got != "main 1, cedar 2" {
		t.Errorf("after two changes of another document: %s", got)
	}
}

func TestALockOutIsAskedForTwice(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	for n := range 2 {
		req := request("{}")
		req.Confirmations = n
		if _, err := a.Apply(t.Context(), root, req); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "lock everyone out") {
			t.Fatalf("confirmed %d times: %v", n, err)
		}
	}
	if !may(a, "root") || len(m.all) != 1 {
		t.Fatal("a refused change counts")
	}
	req := request("{}")
	req.DryRun = true
	if r, err := a.Apply(t.Context(), root, req); err != nil || !r.LocksOut || len(r.Warnings) == 0 || len(m.all) != 1 {
		t.Fatalf("%+v %v", r, err)
	}
	req.DryRun, req.Confirmations = false, 2
	if _, err := a.Apply(t.Context(), root, req); err != nil || may(a, "root") {
		t.Fatal(err)
	}
	if a = open(t, m, true); !may(a, "root") {
		t.Fatal("there is no way back")
	}
}

// Roles lock out as bindings do: one that loses the right to change the policy,
// and one that is gone.
func TestARoleThatLocksEveryoneOutIsAskedForTwice(t *testing.T) {
	const keeper = "roles: {keeper: {actions: [%s], resources: [\"policy:policy\"]}}\nbindings: [{role: keeper, subjects: [human:root]}]\n"
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	if _, err := a.Apply(t.Context(), root, request(fmt.Sprintf(keeper, "policy:apply, policy:read"))); err != nil {
		t.Fatal(err)
	}
	lesser := fmt.Sprintf(keeper, "policy:read")
	for n := range 2 {
		req := request(lesser)
		req.Confirmations = n
		if _, err := a.Apply(t.Context(), root, req); isle.CodeOf(err) != isle.Refused || !strings.Contains(err.Error(), "lock everyone out") {
			t.Fatalf("confirmed %d times: %v", n, err)
		}
		if !may(a, "root") {
			t.Fatal("a refused change counts")
		}
	}
	req := request(lesser)
	req.Confirmations = 2
	if _, err := a.Apply(t.Context(), root, req); err != nil || may(a, "root") {
		t.Fatal(err)
	}
}

func TestAPolicyThatWasChangedBehindTheLogIsRefused(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	open(t, m, false)
	d := m.docs["main"]
	d.Body = []byte("bindings: [{role: admin, subjects: [human:mallory]}]")
	m.docs["main"] = d
	if _, err := Open(t.Context(), Config{Store: m}); isle.CodeOf(err) != isle.Unavailable || !strings.Contains(err.Error(), "behind") {
		t.Fatal(err)
	}
}

func TestABadDocumentChangesNothing(t *testing.T) {
	m := &memory{docs: map[string]Stored{}}
	a := open(t, m, false)
	_, err := a.Apply(t.Context(), root, request("bindings:\n  - {role: admni, subjects: [human:root]}\n"))
	if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "main.yaml:2:5: unknown role \"admni\"; did you mean admin?") {
		t.Fatal(err)
	}
	if a.State().Epoch != 1 || !may(a, "root") {
		t.Error("it counts")
	}
	if _, err = a.Apply(t.Context(), root, Request{Document: policy.Document{Name: "main", Format: policy.Cedar, Body: []byte("permit(principal,action,resource);")}}); isle.CodeOf(err) != isle.Conflict {
		t.Error(err)
	}
}

func TestEditsAtTheSameTimeAreAllMade(t *testing.T) {
	a := open(t, &memory{docs: map[string]Stored{}}, false)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := a.Apply(t.Context(), root, Request{
				Document: policy.Document{Name: "machines", Format: policy.YAML},
				Edit: func(body []byte) ([]byte, error) {
					if body == nil {
						body = []byte("bindings:\n")
					}
					return append(body, "  - {role: auditor, subjects: [human:ann]}\n"...), nil
				},
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range a.State().Set.Documents() {
		if d.Name == "machines" && strings.Count(string(d.Body), "auditor") != 20 {
			t.Errorf("%s", d.Body)
		}
	}
}
