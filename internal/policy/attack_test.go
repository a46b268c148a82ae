package policy

import (
	"fmt"
	"strings"
	"testing"

	"isle"
)

// Whoever may read the policy may ask what one would change: a text that makes
// the parser call itself without end would end the server for everybody.
func TestNoCedarTextIsTooDeepToBeRead(t *testing.T) {
	const n = MaxDocument - 200
	wrap := func(head, part, tail string, depth int) string {
		return "permit (principal, action, resource) when { " + head + strings.Repeat(part, depth) + tail + " };"
	}
	fill := func(head, part, tail string) string { return wrap(head, part, tail, n/len(part)) }
	for name, text := range map[string]string{
		"and":                fill("true", " && true", ""),
		"or without space":   fill("true", "||true", ""),
		"sums":               fill("1 == 1", "+1", ""),
		"not":                fill("", "!", "true"),
		"minus":              fill("", "-", "1 == 1"),
		"attributes":         fill("principal", ".a", ""),
		"has":                fill("principal has a", ".a", ""),
		"if":                 fill("", "if true then true else ", "true"),
		"conditions":         fill("", "if ", ""),
		"brackets":           fill("", "(", ""),
		"behind a string":    `@id(";\"") ` + fill("principal.name == \";\" ", "&& true ", ""),
		"behind a comment":   "// \" ;\n/* \" ; */" + fill("true /* ; \" */", "&&true", ""),
		"in many conditions": "permit (principal, action, resource) " + strings.Repeat("when{true}", n/10) + ";",
	} {
		_, err := Compile(Document{Name: "x", Format: Cedar, Body: []byte(text)})
		if isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is long and not deep is read.
	many := strings.Repeat(`forbid (principal == Human::"eve", action, resource) when { principal.name == "(((((((;" }; // ((((`+"\n", 5000)
	if _, err := Compile(Document{Name: "x", Format: Cedar, Body: []byte(many)}); err != nil {
		t.Error(err)
	}
	// The largest that is taken is far from the end of the stack, whatever is done with it.
	for _, part := range []string{"!", "&&true", ".a"} {
		head, tail := "", ""
		switch part {
		case "!":
			tail = "true"
		case ".a":
			head = "principal"
		default:
			head = "true"
		}
		s, err := Compile(Document{Name: "x", Format: Cedar, Body: []byte(wrap(head, part, tail, (maxPolicy-100)/len(part)))})
		if err != nil {
			continue // Cedar itself bounds some
		}
		s.Decide(ask(t, "human:root", "environment:exec", "environment:shop"))
		s.CedarText()
	}
}

func FuzzWhatIsBoundedIsReadLikeCedar(f *testing.F) {
	f.Add(`permit (principal, action, resource) when { "a;\"b" == principal.name /* ; */ };`)
	f.Add(`@id("\u{41};") forbid (principal, action, resource); // ;`)
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 1<<16 {
			return
		}
		// Neither may panic, whatever the other says.
		if bounded("x", []byte(text)) == nil {
			Compile(Document{Name: "x", Format: Cedar, Body: []byte(text)})
		}
	})
}

// A few kilobytes with aliases, or a product of lists, say more than a memory holds.
func TestAPolicyThatComesToTooManyGrantsIsRefused(t *testing.T) {
	var subjects, resources strings.Builder
	for i := range 5000 {
		fmt.Fprintf(&subjects, "human:a%d, ", i)
		fmt.Fprintf(&resources, "\"environment:e%d@testing\", ", i)
	}
	text := "roles: {r: {actions: [environment:exec], resources: [" + resources.String() + "]}}\nbindings: [{role: r, subjects: [" + subjects.String() + "]}]"
	if _, err := Compile(Document{Name: "x", Format: YAML, Body: []byte(text)}); isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "grants") {
		t.Error(err)
	}
}

func TestManyRolesOfOneSubjectAreDecidedInTime(t *testing.T) {
	var roles, bindings strings.Builder
	for i := range 20_000 {
		if i == 0 {
			roles.WriteString("  r0: &r {actions: [environment:exec], resources: [\"environment:shop@testing\"]}\n")
		} else {
			fmt.Fprintf(&roles, "  r%d: *r\n", i)
		}
		fmt.Fprintf(&bindings, "  - {role: r%d, subjects: [human:ann]}\n", i)
	}
	s := compile(t, "roles:\n"+roles.String()+"bindings:\n"+bindings.String())
	a := s.Decide(ask(t, "human:ann", "environment:exec", "environment:shop"))
	if !a.Allowed() || len(a.Because) != 20_000 || a.Rule != "role r0, bound to human:ann" {
		t.Errorf("%s by %s of %d", a.Decision, a.Rule, len(a.Because))
	}
}

// An answer names what decided by its ID: two of one ID would hide each other.
func TestAForbidIsNotHiddenByAPermitOfItsName(t *testing.T) {
	permit := Document{Name: "one", Format: Cedar, Body: []byte(`@id("x") permit (principal, action, resource);`)}
	broken := Document{Name: "two", Format: Cedar, Body: []byte(`@id("x") forbid (principal, action, resource) when { resource.nothing == 1 };`)}
	_, err := Compile(permit, broken)
	if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), `"cedar x" is there already`) {
		t.Errorf("%v", err)
	}
	// Nor by one whose name is what another has without one.
	first := Document{Name: "one", Format: Cedar, Body: []byte(`permit (principal, action, resource);`)}
	second := Document{Name: "two", Format: Cedar, Body: []byte(`@id("one#1") forbid (principal, action, resource) when { resource.nothing == 1 };`)}
	if _, err := Compile(first, second); isle.CodeOf(err) != isle.Invalid {
		t.Errorf("%v", err)
	}
}

// The zero time means never. Nobody who writes an end means never.
func TestAnEndThatIsLongPastIsNoneWithoutEnd(t *testing.T) {
	for _, end := range []string{"0001-01-01T00:00:00Z", "0000-12-31", "1970-01-01"} {
		_, err := Compile(Document{Name: "main", Format: YAML, Body: []byte(`bindings: [{role: admin, subjects: [human:ann], expires: "` + end + `"}]`)})
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(err.Error(), "want a year from 2000 on") {
			t.Errorf("%s: %v", end, err)
		}
	}
	s := compile(t, `bindings: [{role: admin, subjects: [human:ann], expires: 9999-12-31}]`)
	if !s.Decide(ask(t, "human:ann", "policy:apply", "policy:policy")).Allowed() {
		t.Error("an end that is far away has come")
	}
}
