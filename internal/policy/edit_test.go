package policy

import (
	"strings"
	"testing"
	"time"
)

func bindingOf(name string) Binding {
	return Binding{
		Role: "developer", Subjects: []Subject{{Kind: "machine", Name: name}}, Stages: []string{"testing"},
		Expires: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Reason: `builds "it": all # of it`,
	}
}

func TestABindingIsAddedAndTheRestStays(t *testing.T) {
	hand := `# Ours, by hand.
roles:
  shop-logs: {actions: [environment:logs], resources: [{project: shop, stage: testing}]} # logs only
bindings:
  # The pipeline.
  - role: shop-logs
    subjects: [machine:ci, human:ann] # both
`
	for name, body := range map[string][]byte{
		"none": nil, "empty": []byte(""), "a mapping": []byte("{}\n"), "comments": []byte("# nothing yet\n"),
		"no bindings": []byte("protected: [production]\n"), "an empty list": []byte("bindings: []\n"), "by hand": []byte(hand),
	} {
		out, err := Bind(body, bindingOf("ci"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, err = Bind(out, bindingOf("deploy"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		set, err := Compile(Document{Name: MachinesDocument, Format: YAML, Body: out})
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		for _, m := range []string{"ci", "deploy"} {
			roles := set.RolesOf(Subject{Kind: "machine", Name: m}, time.Date(2029, 1, 1, 0, 0, 0, 0, time.UTC))
			if got := strings.Join(roles, " "); got != "developer" && got != "shop-logs developer" {
				t.Errorf("%s: %s has %q\n%s", name, m, got, out)
			}
		}
		if set.RolesOf(Subject{Kind: "machine", Name: "deploy"}, time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)) != nil {
			t.Errorf("%s: the binding has no end\n%s", name, out)
		}
		for line := range strings.Lines(string(body)) {
			if strings.Contains(line, "#") && !strings.Contains(string(out), strings.TrimSpace(line[strings.Index(line, "#"):])) {
				t.Errorf("%s: %q is gone:\n%s", name, line, out)
			}
		}
		gone, n, err := Unbind(out, Subject{Kind: "machine", Name: "deploy"})
		if err != nil || n != 1 || strings.Contains(string(gone), "deploy") || !strings.Contains(string(gone), "machine:ci") {
			t.Errorf("%s: %v, %d changed\n%s", name, err, n, gone)
		}
		gone, _, err = Unbind(gone, Subject{Kind: "machine", Name: "ci"})
		if err != nil || strings.Contains(string(gone), "machine:ci") {
			t.Errorf("%s: %v\n%s", name, err, gone)
		}
		if name == "by hand" && !strings.Contains(string(gone), "human:ann") {
			t.Errorf("somebody else lost their role:\n%s", gone)
		}
		if _, err := Compile(Document{Name: MachinesDocument, Format: YAML, Body: gone}); err != nil {
			t.Errorf("%s: %v\n%s", name, err, gone)
		}
	}
}

func TestWhatCannotBeEditedIsSaid(t *testing.T) {
	for _, body := range []string{"- a\n", "bindings: 3\n", "a: [\n", "x"} {
		if out, err := Bind([]byte(body), bindingOf("ci")); err == nil {
			t.Errorf("%q: became %q", body, out)
		}
	}
}

// A document that was good is as good with a binding more, and again without it.
func FuzzBind(f *testing.F) {
	f.Add(Default)
	f.Add("bindings: &a [{role: admin, subjects: &s [human:root]}]\n")
	f.Add("# c\n{}\n")
	f.Add("bindings:\n- role: admin\n  subjects: [machine:ci]\n...\n# after\n")
	f.Fuzz(func(t *testing.T, body string) {
		before, err := Compile(Document{Name: MachinesDocument, Format: YAML, Body: []byte(body)})
		if err != nil {
			return
		}
		out, err := Bind([]byte(body), bindingOf("a-machine-of-its-own"))
		if err != nil {
			return
		}
		after, err := Compile(Document{Name: MachinesDocument, Format: YAML, Body: out})
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, body, out)
		}
		now := time.Date(2029, 1, 1, 0, 0, 0, 0, time.UTC)
		if changes := before.Diff(after, now); len(changes) == 0 || strings.Contains(changes[0].String(), "loses") {
			t.Fatalf("%v\n%s\n%s", changes, body, out)
		}
		out, n, err := Unbind(out, Subject{Kind: "machine", Name: "a-machine-of-its-own"})
		if err != nil || n != 1 {
			t.Fatalf("%d %v", n, err)
		}
		again, err := Compile(Document{Name: MachinesDocument, Format: YAML, Body: out})
		if err != nil {
			t.Fatalf("%v\n%s\n%s", err, body, out)
		}
		if changes := before.Diff(again, now); len(changes) != 0 {
			t.Fatalf("%v\n%s\n%s", changes, body, out)
		}
	})
}
