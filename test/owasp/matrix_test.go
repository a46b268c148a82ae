package owasp

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"isle"
)

// stages are those of the matrix. One of them is protected.
var stages = []string{"testing", "staging", "production", "preview"}

const protected = "production"

// everything is granted to everybody, in each stage by its name: what is still
// refused is what no role lifts.
//
// Behind the gateway each stage has a connection that answers at an address.
func everything(protect, address string) string {
	var subjects, connections []string
	for _, s := range stages {
		subjects = append(subjects, "{stage: "+s+"}")
		connections = append(connections, fmt.Sprintf("  door-%s: {kind: tcp, address: %q, stage: %s, tls: off}", s, address, s))
	}
	return fmt.Sprintf(`
connections:
%s
roles:
  everything: {actions: ["*"], resources: ["*"], reason: the matrix, expires: 2099-12-31}
bindings:
  - {role: admin, subjects: [human:root]}
  - {role: everything, subjects: ["human:*", "machine:*", %s], stages: [%s], reason: the matrix, expires: 2099-12-31}
protected: [%s]
`, strings.Join(connections, "\n"), strings.Join(subjects, ", "), strings.Join(stages, ", "), protect)
}

// A probe is a call that does an action to a resource of a stage.
type probe struct {
	procedure string
	message   message
	// says is what may be said, beside that it works or finds nothing, where the
	// policy lets it pass.
	says []string
}

// before are what there is of each stage, made by whom the matrix is not about.
type before struct {
	key     string // of the machine other-STAGE
	session string // of the connection door-STAGE, ended
	request string // for access through it, waiting
}

// probes has one for each action on what has a stage: TestOnlyTheDiagonalOpens
// fails where one is missing.
func probes(stage, who string, there before) map[isle.Action]probe {
	access := message{"what": "door", "name": "door-" + stage, "for": "3600s", "why": "the matrix"}
	cell, none := "cell@"+stage, "none@"+stage
	fresh := fmt.Sprintf("p-%s-%s", who, stage)
	return map[isle.Action]probe{
		isle.ActionEnvironmentRead:    {procedure: "EnvironmentService/Get", message: message{"environment": cell}},
		isle.ActionEnvironmentLogs:    {procedure: "EnvironmentService/Logs", message: message{"environment": cell}},
		isle.ActionEnvironmentExec:    {procedure: "EnvironmentService/Exec", message: message{"start": message{"environment": cell, "command": []string{"/inside", "reach"}}}},
		isle.ActionEnvironmentCopy:    {procedure: "EnvironmentService/CopyOut", message: message{"environment": cell, "path": "/inside"}},
		isle.ActionEnvironmentDiff:    {procedure: "EnvironmentService/Diff", message: message{"environment": cell}},
		isle.ActionEnvironmentPort:    {procedure: "EnvironmentService/PortForward", message: message{"start": message{"environment": cell, "port": 7000}}},
		isle.ActionEnvironmentExtend:  {procedure: "EnvironmentService/Extend", message: message{"environment": cell, "by": "60s"}},
		isle.ActionEnvironmentLaunch:  {procedure: "EnvironmentService/Up", message: message{"source": message{"spec": []byte("name: matrix\nservices: {one: {}}\n"), "specName": "isle.yaml"}, "name": fresh, "stage": stage}},
		isle.ActionEnvironmentDown:    {procedure: "EnvironmentService/Down", message: message{"environments": []string{none}}},
		isle.ActionVolumeDelete:       {procedure: "EnvironmentService/Down", message: message{"environments": []string{none}, "volumes": true}},
		isle.ActionEnvironmentFork:    {procedure: "ForkService/Fork", message: message{"from": none}},
		isle.ActionEnvironmentRestore: {procedure: "ForkService/Restore", message: message{"environment": none, "at": "snap-" + stage}},
		isle.ActionVolumeCross:        {procedure: "ForkService/Fork", message: message{"from": cell, "toStage": "elsewhere"}, says: []string{"a session is in one stage"}},
		isle.ActionSnapshotCreate:     {procedure: "SnapshotService/CreateSnapshot", message: message{"environment": cell}},
		isle.ActionSnapshotRead:       {procedure: "SnapshotService/GetSnapshot", message: message{"snapshot": "snap-" + stage}},
		isle.ActionSnapshotTag:        {procedure: "SnapshotService/TagSnapshot", message: message{"snapshot": "snap-" + stage, "tag": "snap-" + stage}},
		isle.ActionSnapshotExport:     {procedure: "SnapshotService/ExportSnapshot", message: message{"snapshot": "snap-" + stage}},
		isle.ActionSnapshotRemove:     {procedure: "SnapshotService/RemoveSnapshot", message: message{"snapshot": gone(who, stage)}},
		isle.ActionIdentityCreate:     {procedure: "IdentityService/CreateIdentity", message: message{"name": fresh, "owner": "human:root", "purpose": "the matrix", "expires": inDays(1), "stage": stage}},
		isle.ActionIdentityRead:       {procedure: "IdentityService/ListIdentities", message: message{"name": "other-" + stage}},
		isle.ActionIdentityRotate:     {procedure: "IdentityService/RotateKey", message: message{"name": "other-" + stage, "overlap": "0s"}},
		isle.ActionIdentityRevoke:     {procedure: "IdentityService/RevokeKey", message: message{"id": there.key}, says: []string{"already"}},
		isle.ActionIdentityTransfer:   {procedure: "IdentityService/SetOwner", message: message{"name": "other-" + stage, "owner": "human:root"}},
		isle.ActionConnectionOpen:     {procedure: "ConnectionService/Connect", message: message{"start": message{"connection": "door-" + stage}}},
		isle.ActionSessionRead:        {procedure: "SessionService/GetSession", message: message{"id": there.session}},
		isle.ActionSessionEnd:         {procedure: "SessionService/EndSession", message: message{"id": there.session, "reason": "the matrix"}, says: []string{"ended"}},
		isle.ActionRecordingRead:      {procedure: "SessionService/ReplaySession", message: message{"id": there.session}},
		isle.ActionApprovalRead:       {procedure: "ApprovalService/GetApproval", message: message{"id": there.request}},
		isle.ActionApprovalDecide:     {procedure: "ApprovalService/Approve", message: message{"id": there.request, "hash": "another"}, says: []string{"only people approve", "has the hash"}},
		isle.ActionAccessRequest:      {procedure: "ApprovalService/RequestAccess", message: access},
		isle.ActionAccessBreakGlass:   {procedure: "ApprovalService/BreakGlass", message: access, says: []string{"only people break the glass"}},
	}
}

// askedElsewhere are the actions on what has a stage that no call does, and why.
var askedElsewhere = map[isle.Action]string{
	isle.ActionEgressConnect:    "workloads do it themselves",
	isle.ActionEnvironmentVisit: "users of the machine do it, on its loopback: a_stage_is_reached_by_who_has_a_role_for_it tries that",
	isle.ActionSnapshotImport:   "of which stage it is says the file: internal/api tries that",
	isle.ActionPostgresSelect:   within, isle.ActionPostgresWrite: within, isle.ActionPostgresSchema: within, isle.ActionPostgresAdmin: within,
	isle.ActionHTTPRead: within, isle.ActionHTTPWrite: within,
}

const within = "it is done within a session of a connection, and who may not open that has none"

// Every kind of identity, in each stage, against the resources of each: by the
// decisions of the real server, under a policy that grants everything to
// everybody, nothing opens but what is of the same stage.
func TestOnlyTheDiagonalOpens(t *testing.T) {
	w, err := newWorld()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	address := answers(t)
	w.must(t, "apply", "-f", writeFile(t, "open.yaml", everything("", address)))
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
	w.must(t, "apply", "-f", writeFile(t, "closed.yaml", everything(protected, address)))
	there := map[string]before{}
	for _, s := range stages {
		there[s] = w.before(t, s)
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
					w.cell(t, c, kind, own, of, there[of])
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
				opens(t, kind+", "+own, c.call(t, "EnvironmentService/Exec", probes(own, "x", there[own])[isle.ActionEnvironmentExec].message))
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

// answers is an address where something takes connections and ends them.
func answers(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

// before makes what there is of a stage: a machine, which asks for access, and a
// session of the stage's connection.
func (w *world) before(t *testing.T, stage string) (b before) {
	t.Helper()
	key := w.machine(t, "other-"+stage, "--stage", stage)
	b.key = keysOf(t, w, "other-"+stage)[0]
	other := w.from(t, key)
	door := "door-" + stage
	opens(t, "a session of "+door, other.call(t, "ConnectionService/Connect", message{"start": message{"connection": door}}))
	var sessions []struct{ ID string }
	if err := json.Unmarshal([]byte(w.must(t, "sessions", "--all", "--connection", door, "-o", "json")), &sessions); err != nil {
		t.Fatal(err)
	}
	var asked struct{ Approval struct{ ID string } }
	a := other.call(t, "ApprovalService/RequestAccess", message{"what": "door", "name": door, "for": "3600s", "why": "to be seen"})
	if err := json.Unmarshal(a.Body, &asked); err != nil || asked.Approval.ID == "" || len(sessions) != 1 {
		t.Fatalf("%v: %s; %d sessions", err, a.Body, len(sessions))
	}
	b.session, b.request = sessions[0].ID, asked.Approval.ID
	w.must(t, "snapshot", "cell@"+stage, "--tag", "snap-"+stage)
	return b
}

// gone is the snapshot in a stage that a caller tries to remove.
func gone(who, stage string) string { return "gone-" + who + "-" + stage }

// cell tries every action of a caller in a stage on what is of another, or its
// own.
func (w *world) cell(t *testing.T, c *caller, kind, own, of string, there before) {
	t.Helper()
	who := kind + "-" + own[:2]
	all := probes(of, who, there)
	if _, err := w.Isle("snapshot", "show", gone(who, of)); err != nil { // else it was not removed before
		w.must(t, "snapshot", "cell@"+of, "--tag", gone(who, of))
	}
	for _, info := range isle.Actions() {
		if !isle.Staged(info.Resource) && info.Resource != "volume" || info.Own || askedElsewhere[info.Action] != "" {
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
		case (info.Action == isle.ActionEnvironmentLaunch || info.Action == isle.ActionEnvironmentRestore) && of == protected:
			denied(t, what, a, "built in: protected stages launch releases only")
		case a.Code != "ok" && a.Code != "not_found" && !slices.ContainsFunc(p.says, func(s string) bool { return strings.Contains(a.Message, s) }):
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
