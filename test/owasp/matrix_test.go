package owasp

import (
	"fmt"
	"strings"
	"testing"

	"isle"
)

// stages are those of the matrix. One of them is protected.
var stages = []string{"testing", "staging", "production", "preview"}

const protected = "production"

// everything is granted to everybody, in each stage by its name: what is still
// refused is what no role lifts.
func everything(protect string) string {
	var subjects []string
	for _, s := range stages {
		subjects = append(subjects, "{stage: "+s+"}")
	}
	return fmt.Sprintf(`
roles:
  everything: {actions: ["*"], resources: ["*"], reason: the matrix, expires: 2099-12-31}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: everything, subjects: ["human:*", "machine:*", %s], stages: [%s], reason: the matrix, expires: 2099-12-31}
protected: [%s]
`, strings.Join(subjects, ", "), strings.Join(stages, ", "), protect)
}

// A probe is a call that does an action to a resource of a stage.
type probe struct {
	procedure string
	message   message
}

// probes has one for each action on what has a stage: TestOnlyTheDiagonalOpens
// fails where one is missing.
func probes(stage, who string) map[isle.Action]probe {
	cell, none := "cell@"+stage, "none@"+stage
	fresh := fmt.Sprintf("p-%s-%s", who, stage)
	return map[isle.Action]probe{
		isle.ActionEnvironmentRead:   {"EnvironmentService/Get", message{"environment": cell}},
		isle.ActionEnvironmentLogs:   {"EnvironmentService/Logs", message{"environment": cell}},
		isle.ActionEnvironmentExec:   {"EnvironmentService/Exec", message{"start": message{"environment": cell, "command": []string{"/inside", "reach"}}}},
		isle.ActionEnvironmentCopy:   {"EnvironmentService/CopyOut", message{"environment": cell, "path": "/inside"}},
		isle.ActionEnvironmentDiff:   {"EnvironmentService/Diff", message{"environment": cell}},
		isle.ActionEnvironmentPort:   {"EnvironmentService/PortForward", message{"start": message{"environment": cell, "port": 7000}}},
		isle.ActionEnvironmentExtend: {"EnvironmentService/Extend", message{"environment": cell, "by": "60s"}},
		isle.ActionEnvironmentLaunch: {"EnvironmentService/Up", message{"source": message{"spec": []byte("name: matrix\nservices: {one: {}}\n"), "specName": "isle.yaml"}, "name": fresh, "stage": stage}},
		isle.ActionEnvironmentDown:   {"EnvironmentService/Down", message{"environments": []string{none}}},
		isle.ActionVolumeDelete:      {"EnvironmentService/Down", message{"environments": []string{none}, "volumes": true}},
		isle.ActionIdentityCreate:    {"IdentityService/CreateIdentity", message{"name": fresh, "owner": "human:root", "purpose": "the matrix", "expires": inDays(1), "stage": stage}},
		isle.ActionIdentityRead:      {"IdentityService/ListIdentities", message{"name": "other-" + stage}},
		isle.ActionIdentityRotate:    {"IdentityService/RotateKey", message{"name": "other-" + stage, "overlap": "0s"}},
		isle.ActionIdentityRevoke:    {"IdentityService/RevokeKey", message{"id": ""}}, // of whom, the test says
		isle.ActionIdentityTransfer:  {"IdentityService/SetOwner", message{"name": "other-" + stage, "owner": "human:root"}},
	}
}

// askedElsewhere are the actions on what has a stage that no call does: those
// are the workloads' own.
var askedElsewhere = map[isle.Action]bool{isle.ActionEgressConnect: true}

// Every kind of identity, in each stage, against the resources of each: by the
// decisions of the real server, under a policy that grants everything to
// everybody, nothing opens but what is of the same stage.
func TestOnlyTheDiagonalOpens(t *testing.T) {
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.must(t, "apply", "-f", writeFile(t, "open.yaml", everything("")))
	ports := map[string]int{}
	for _, s := range stages {
		if err := w.up(t.TempDir(), answering("cell", s+"-speaks"), "--stage", s); err != nil {
			t.Fatal(err)
		}
		ports[s] = portOf(t, w, "cell@"+s)
	}
	var doors []string
	for _, s := range stages {
		doors = append(doors, fmt.Sprintf("{host: %s, port: %d, addresses: [127.0.0.0/8]}", itself, ports[s]))
	}
	for _, s := range stages {
		if err := w.up(t.TempDir(), "name: walker\n"+service+"egress: ["+strings.Join(doors, ", ")+"]\n", "--stage", s); err != nil {
			t.Fatal(err)
		}
	}
	// What runs in the protected stage goes on when that is protected.
	w.must(t, "apply", "-f", writeFile(t, "closed.yaml", everything(protected)))
	others := map[string]string{}
	for _, s := range stages {
		w.machine(t, "other-"+s, "--stage", s)
		others[s] = keysOf(t, w, "other-"+s)[0]
	}

	t.Run("confined callers", func(t *testing.T) {
		for _, own := range stages {
			w.must(t, "server", "reload") // each has its share of refusals that are told one by one
			name := "m-" + own
			key := w.machine(t, name, "--stage", own)
			confined := w.must(t, "token", "create", "--purpose", "the matrix", "--expires", "1h", "--stage", own)
			remote := w.from(t, key)
			for kind, c := range map[string]*caller{"key": remote, "access": remote.with(remote.token(t, name, key)), "person": remote.with(confined)} {
				actor := "machine:" + name
				if kind == "person" {
					actor = "human:root"
				}
				for _, of := range stages {
					w.cell(t, c, kind, own, of, others[of])
				}
				w.cellsLogged(t, actor, own)
			}
		}
	})
	t.Run("people who are in any stage, one at a time", func(t *testing.T) {
		w.must(t, "server", "reload")
		anywhere := w.must(t, "token", "create", "--purpose", "the matrix", "--expires", "1h")
		for kind, c := range map[string]*caller{"by the socket": w.beside(t), "by a token": w.from(t, anywhere)} {
			for _, own := range stages {
				for _, of := range stages {
					// A call is a session, in the stage of what it names first.
					a := c.call(t, "EnvironmentService/Down", message{"environments": []string{"none@" + own, "nil@" + of}})
					if own == of && a.Code != "not_found" {
						t.Errorf("%s, %s and %s: %v, want it allowed", kind, own, of, a)
					} else if own != of {
						denied(t, kind+", "+own+" and "+of, a, "a session is in one stage")
					}
				}
				opens(t, kind+", "+own, c.call(t, "EnvironmentService/Exec", probes(own, "x")[isle.ActionEnvironmentExec].message))
			}
		}
		w.cellsLogged(t, "human:root", stages...)
	})
	t.Run("workloads in their airlocks", func(t *testing.T) {
		for _, own := range stages {
			id := w.in(t, "walker@"+own, "steal", "x")["id"]
			for _, of := range stages {
				how := w.in(t, "walker@"+own, "via", itself, fmt.Sprint(ports[of]))["via"]
				if reached := strings.Contains(how, of+"-speaks"); reached != (own == of) {
					t.Errorf("from %s to %s: %s", own, of, how)
				}
				wanted := strings.Replace(id, "/"+own+"/", "/"+of+"/", 1)
				if got := w.in(t, "walker@"+own, "ask", wanted)[wanted]; (got == "OK") != (own == of) {
					t.Errorf("%s asks for %s: %s", own, wanted, got)
				}
			}
			doors := w.must(t, "doors", "walker@"+own, "-o", "json")
			for _, of := range stages {
				if told := strings.Contains(doors, "a published port of stage "+of); told != (own != of) {
					t.Errorf("what was refused from %s to %s is told: %v", own, of, told)
				}
			}
		}
		if n := len(w.entries(t, "--action", "egress:connect", "--decision", "deny")); n < len(stages)*(len(stages)-1) {
			t.Errorf("%d refused connections are in the log", n)
		}
	})
	w.must(t, "audit", "verify")
}

// cell tries every action of a caller in a stage on what is of another, or its
// own.
func (w *world) cell(t *testing.T, c *caller, kind, own, of, key string) {
	t.Helper()
	all := probes(of, kind+"-"+own[:2])
	all[isle.ActionIdentityRevoke].message["id"] = key
	for _, info := range isle.Actions() {
		if !isle.Staged(info.Resource) && info.Resource != "volume" || info.Own || info.Later || askedElsewhere[info.Action] {
			continue
		}
		p, ok := all[info.Action]
		if !ok {
			t.Fatalf("no probe does %s", info.Action)
		}
		a := c.call(t, p.procedure, p.message)
		what := fmt.Sprintf("%s of %s does %s in %s", kind, own, info.Action, of)
		switch {
		case own != of:
			denied(t, what, a, "built in: a session is in one stage")
		case info.Action == isle.ActionEnvironmentLaunch && of == protected:
			denied(t, what, a, "built in: protected stages launch releases only")
		case a.Code != "ok" && a.Code != "not_found" && !(info.Action == isle.ActionIdentityRevoke && a.Code == "already_exists"):
			t.Errorf("%s: %v, want it to work", what, a)
		}
	}
}

// cellsLogged says that each cell beside the diagonal is in the log.
func (w *world) cellsLogged(t *testing.T, actor string, own ...string) {
	t.Helper()
	seen := map[string]bool{}
	for _, e := range w.entries(t, "--actor", actor, "--decision", "deny") {
		if e.Rule == "built in: a session is in one stage" {
			seen[e.Details["session"]+" "+e.Resource.Stage] = true
		}
	}
	for _, s := range own {
		for _, of := range stages {
			if cell := s + " " + of; seen[cell] != (s != of) {
				t.Errorf("%s, %s: refused in the log: %v", actor, cell, seen[cell])
			}
		}
	}
}
