package environment

import (
	"strings"
	"sync"
	"testing"

	"isle/internal/spec"
)

// grants is a Policy that a test changes.
type grants struct {
	mu      sync.Mutex
	allowed map[string]bool
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
		for _, e := range w.networks[id] {
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
		return len(w.networks[r.Environment.Instance])
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
