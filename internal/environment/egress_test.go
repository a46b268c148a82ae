package environment

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"isle"
	"isle/internal/spec"
)

// grants is a Policy that a test changes.
type grants struct {
	mu      sync.Mutex
	allowed map[string]bool
	known   map[string]Connection // connections that there are
}

func (g *grants) Connection(_ Environment, name string) Connection {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.known[name]
	c.Allowed, c.Rule, c.Grant = g.allowed[name], "role x", ""
	if !c.Allowed {
		c.Rule, c.Grant = "default", "{role: y}"
	}
	return c
}

func (g *grants) Egress(_ Environment, destination string) (bool, string, string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.allowed[destination] {
		return true, "role x", ""
	}
	return false, "default", "{role: y}"
}

func (g *grants) set(destination string, allowed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.allowed[destination] = allowed
}

func TestOnlyGrantedEgressIsOpenedAndPolicyIsFollowed(t *testing.T) {
	w := newWorld(t)
	g := &grants{allowed: map[string]bool{"a.example:443": true}}
	m := w.serve(func(c *Config) { c.Policy = g })
	req := shop("shop")
	req.Spec.Egress = []spec.Egress{{Host: "a.example", Port: 443}, {Host: "b.example", Port: 443}}
	var warned []string
	r, err := m.Up(t.Context(), root, req, func(p Progress) {
		if p.Step == "egress" {
			warned = append(warned, p.Message)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "b.example:443") || !strings.Contains(warned[0], "{role: y}") {
		t.Errorf("%q", warned)
	}
	id := r.Environment.Instance
	open := func() (hosts []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, e := range w.networks[id].Egress {
			hosts = append(hosts, e.Host)
		}
		return hosts
	}
	if h := open(); len(h) != 1 || h[0] != "a.example" {
		t.Fatalf("open: %v", h)
	}
	doors, err := m.Doors(t.Context(), root, req.Ref)
	if err != nil || len(doors) == 0 || doors[len(doors)-1].State != "refused" || !strings.Contains(doors[len(doors)-1].Reason, "refused by policy") {
		t.Errorf("%+v %v", doors, err)
	}
	refusals := 0
	w.mu.Lock()
	for _, e := range w.entries {
		if e.Action == "egress:connect" && e.Decision == "deny" && e.Rule == "default" {
			refusals++
		}
	}
	w.mu.Unlock()
	if refusals != 1 {
		t.Errorf("%d refusals are recorded", refusals)
	}

	g.set("a.example:443", false)
	g.set("b.example:443", true)
	m.PolicyChanged(t.Context())
	if h := open(); len(h) != 1 || h[0] != "b.example" {
		t.Errorf("after a change of policy: %v", h)
	}
	mustDown(t, m, req.Ref, true)
	g.set("a.example:443", true)
	m.PolicyChanged(t.Context())
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.networks[id]; ok {
		t.Error("a change of policy made the airlock of what is torn down")
	}
}

func TestAFileDoesNotGrantItselfThePrivateNetworkBehindAName(t *testing.T) {
	w := newWorld(t)
	g := &grants{allowed: map[string]bool{"a.example:443": true, "10.1.0.0/16:443": true}}
	m := w.serve(func(c *Config) { c.Policy = g })
	req := shop("shop")
	req.Spec.Egress = []spec.Egress{{Host: "a.example", Port: 443, Addresses: []string{"10.1.0.0/16", "127.0.0.0/8"}}}
	r := mustUp(t, m, req)
	open := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.networks[r.Environment.Instance].Egress)
	}
	if open() != 0 {
		t.Error("a name is granted, and with it a network that nobody granted")
	}
	doors, err := m.Doors(t.Context(), root, req.Ref)
	if err != nil || len(doors) == 0 || !strings.Contains(doors[len(doors)-1].Reason, "the network 127.0.0.0/8") {
		t.Errorf("%+v %v", doors, err)
	}
	g.set("127.0.0.0/8:443", true)
	m.PolicyChanged(t.Context())
	if open() != 1 {
		t.Error("what is granted stays closed")
	}
	mustDown(t, m, req.Ref, true)
}

func TestAConnectionIsADoorWherePolicyGrantsItAndARefusedDoorElsewhere(t *testing.T) {
	w := newWorld(t)
	g := &grants{allowed: map[string]bool{"orders-db": true}, known: map[string]Connection{
		"orders-db": {Kind: "postgres", Stage: "testing", Ports: []int{5432}},
		"other-db":  {Kind: "tcp", Stage: "production", Ports: []int{7000}},
	}}
	var waiting atomic.Int32
	m := w.serve(func(c *Config) {
		c.Policy = g
		c.Waiting = func(isle.ID) map[string]int { return map[string]int{"orders-db": int(waiting.Load())} }
	})
	req := shop("shop")
	req.Spec.Egress = nil
	req.Spec.Uses = []string{"orders-db", "other-db", "no-db"}
	r := mustUp(t, m, req)
	open := func() (names []string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range w.networks[r.Environment.Instance].Connections {
			names = append(names, c.Name)
		}
		return names
	}
	if got := open(); len(got) != 1 || got[0] != "orders-db" {
		t.Fatalf("open: %v", got)
	}
	doors, err := m.Doors(t.Context(), root, req.Ref)
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]string{}
	for _, d := range doors {
		if d.Kind == KindConnection && d.State == "refused" {
			reasons[d.Destination] = d.Reason
		}
	}
	if !strings.Contains(reasons["other-db"], "refused by policy: default; ask for the grant {role: y}") || reasons["no-db"] != "there is no connection no-db" {
		t.Errorf("%q", reasons)
	}
	w.mu.Lock()
	refusals := map[string]string{}
	for _, e := range w.entries {
		if e.Action == "connection:open" && e.Decision == "deny" {
			refusals[e.Resource.String()] = e.Rule
		}
	}
	w.mu.Unlock()
	if len(refusals) != 2 || refusals["connection:other-db@production"] != "default" || refusals["connection:no-db"] != "there is no connection no-db" {
		t.Errorf("%q", refusals)
	}

	w.mu.Lock()
	w.doors = []Door{{Destination: "orders-db", Kind: KindConnection, Protocol: "postgres", Stage: "testing", State: "open", Reason: "granted by uses", Active: 3}}
	w.mu.Unlock()
	for n, state := range []string{"open", "held"} {
		waiting.Store(int32(2 * n))
		doors, err := m.Doors(t.Context(), root, req.Ref)
		if err != nil || doors[0].State != state || doors[0].Held != 2*n || doors[0].Reason != "granted by uses and role x" {
			t.Errorf("%+v %v", doors, err)
		}
	}

	g.set("orders-db", false)
	m.PolicyChanged(t.Context())
	if got := open(); len(got) != 0 {
		t.Errorf("after a change of policy: %v", got)
	}
	g.set("orders-db", true)
	req.Spec.Uses = []string{"orders-db"}
	up, err := m.Up(t.Context(), root, req, func(Progress) {})
	if err != nil || !slices.Contains(up.Replaced, "uses: applied in place") {
		t.Errorf("%q %v", up.Replaced, err)
	}
	if got := open(); len(got) != 1 {
		t.Errorf("after a change of the file: %v", got)
	}
	mustDown(t, m, req.Ref, true)
}
