package httpdoor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"isle/internal/policy"
)

func maskingOf(t testing.TB, detect []string, masks ...string) *masking {
	t.Helper()
	c := policy.Connection{Name: "crm", Detect: detect}
	for _, m := range masks {
		i := strings.LastIndex(m, " ")
		c.Mask = append(c.Mask, policy.Mask{Column: m[:i], Show: m[i+1:]})
	}
	m, err := New(Config{MaskKey: []byte("key")}).masks(c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func rewrite(m *masking, src io.Reader, many bool) (string, error) {
	var out bytes.Buffer
	err := newRewriter(m, src, func(p []byte) error { out.Write(p); return nil }).document(many)
	return out.String(), err
}

func TestAMaskedFieldLeavesMaskedAndAllElseAsItIs(t *testing.T) {
	for _, c := range []struct{ mask, in, want string }{
		{"$.customer.email full", `{"customer": {"email":"ann@example.com","id": 7}}`, `{"customer": {"email":"****","id": 7}}`},
		{"$.email partial", "\n{ \"email\" : \"ann@example.com\" }\n", "\n{ \"email\" : \"a***@e*****.com\" }\n"},
		{"$.email null", `{"email":"a"}`, `{"email":null}`},
		{"$.email type", `{"email":"a"}`, `{"email":""}`},
		{"$.email full", `{"\u0065mail":"a","e\u006dail":"b"}`, `{"\u0065mail":"****","e\u006dail":"****"}`},
		{"$.email full", `{"email":"a","email":"b"}`, `{"email":"****","email":"****"}`},
		{"$.email full", `{"email":null,"x":{"email":"b"}}`, `{"email":null,"x":{"email":"b"}}`},
		{"$..email full", `{"a":[{"email":"a"},[[{"email":"b"}]]],"email":"c"}`, `{"a":[{"email":"****"},[[{"email":"****"}]]],"email":"****"}`},
		{"$..a..b full", `{"a":{"x":{"b":"1"}},"b":"2","a2":{"b":"3"},"y":{"a":{"b":"4"}}}`, `{"a":{"x":{"b":"****"}},"b":"2","a2":{"b":"3"},"y":{"a":{"b":"****"}}}`},
		{"$[*].email full", `[{"email":"a"},{"email":"b"}]`, `[{"email":"****"},{"email":"****"}]`},
		{"$[1] full", `["a","b","c"]`, `["a","****","c"]`},
		{"$.*.x full", `{"a":{"x":"1"},"b":{"x":"2"}}`, `{"a":{"x":"****"},"b":{"x":"****"}}`},
		{"$['a b'].c full", `{"a b":{"c":"1"}}`, `{"a b":{"c":"****"}}`},
		{"$.a full", `{"a":[1,"x",[true,null],{"k":"v"}]}`, `{"a":[0,"****",[false,null],null]}`},
		{"$.a full", `{"a":{"secret":{"k":["v"]}},"b":1}`, `{"a":null,"b":1}`},
		{"$.a null", `{"a":[1,2],"b":1}`, `{"a":null,"b":1}`},
		{"$ null", `{"a":[1,2],"b":1}`, `null`},
		{"$.n full", `{"n":-12.5e+3,"m":-12.5e+3}`, `{"n":0,"m":-12.5e+3}`},
		{"$.a full", `{"b":"quote \" and \\","c":"\ud83d\ude00","a":"x\"y"}`, `{"b":"quote \" and \\","c":"\ud83d\ude00","a":"****"}`},
		{"$.a full", "\xef\xbb\xbf{\"a\":\"x\"}", `{"a":"****"}`},
		{"$.a full", `"a"`, `"a"`},
		{"$.a full", `{}`, `{}`},
		{"$.a full", ` [ ] `, ` [ ] `},
	} {
		m := maskingOf(t, nil, c.mask)
		for name, src := range map[string]io.Reader{"at once": strings.NewReader(c.in), "byte by byte": iotest.OneByteReader(strings.NewReader(c.in))} {
			if got, err := rewrite(m, src, false); err != nil || got != c.want {
				t.Errorf("%s, %s: %s becomes %s, %v; want %s", c.mask, name, c.in, got, err, c.want)
			}
		}
	}
}

func TestEqualValuesStayEqualUnderAHash(t *testing.T) {
	got, err := rewrite(maskingOf(t, nil, "$[*] hash"), strings.NewReader(`["a","b","a",17,18,17]`), false)
	var all []any
	if err != nil || json.Unmarshal([]byte(got), &all) != nil || len(all) != 6 {
		t.Fatalf("%s, %v", got, err)
	}
	if all[0] != all[2] || all[0] == all[1] || all[3] != all[5] || all[3] == all[4] || strings.Contains(got, `"a"`) || strings.Contains(got, "17,") {
		t.Error(got)
	}
}

func TestWhatIsNotJSONIsNotPassed(t *testing.T) {
	m := maskingOf(t, nil, "$..email full")
	for _, in := range []string{"", " ", "{", `{"a"`, `{"a":}`, `{"a":1,}`, `[1,]`, `[1 2]`, `{'email':'a'}`, `{email:"a"}`, `{"a":1}{"email":"x"}`, `<email>a</email>`,
		`{"a":01}`, `{"a":NaN}`, `{"a":+1}`, "{\"a\":\"\n\"}", `{"a":"x`, `{"a":tru}`, `/* */{}`, `{"a" 1}`, `]`, "\xff\xfe{", `{"\u00zz":1}`,
		strings.Repeat("[", maxDepth+1), `{"` + strings.Repeat("k", maxKey) + `":1}`} {
		if got, err := rewrite(m, strings.NewReader(in), false); !errors.Is(err, errNotJSON) {
			t.Errorf("%.50q passes as %.50q, %v", in, got, err)
		}
	}
	if got, err := rewrite(m, strings.NewReader("{\"email\":\"a\"}\n{\"email\":\"b\"}\n"), true); err != nil || got != "{\"email\":\"****\"}\n{\"email\":\"****\"}\n" {
		t.Errorf("lines become %q, %v", got, err)
	}
}

func TestDetectorsLookAtWhatNoMaskNames(t *testing.T) {
	m := maskingOf(t, []string{"card"}, "$.a full")
	got, err := rewrite(m, strings.NewReader(`{"a":"x","note":"card 4111 1111 1111 1111 ok","n":4111111111111111,"k":17}`), false)
	if err != nil || strings.Contains(got, "4111 1111 1111") || strings.Contains(got, "411111") || !strings.Contains(got, " ok") || !strings.Contains(got, `"k":17`) {
		t.Errorf("%s, %v", got, err)
	}
}

func TestEventsAreRewrittenOneByOne(t *testing.T) {
	m := maskingOf(t, nil, "$.email full")
	in := "event: user\nid: 1\ndata: {\"email\":\ndata: \"ann\"}\n\n: still here\n\ndata: [DONE]\r\n\r\nsecret: ann\ndata:{\"email\":\"bob\"}\r\rdata: {\"email\":\"cut off"
	for name, src := range map[string]io.Reader{"at once": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in))} {
		var out bytes.Buffer
		err := m.events(src, func(p []byte) error { out.Write(p); return nil })
		got := out.String()
		if err != nil || strings.Contains(got, "ann") || strings.Contains(got, "bob") || strings.Contains(got, "cut off") || strings.Count(got, `"****"`) != 2 ||
			!strings.Contains(got, "event: user\nid: 1\n") || !strings.Contains(got, "data: [DONE]\n") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if err := m.events(strings.NewReader("data: ann@example.com\n\n"), func([]byte) error { return nil }); !errors.Is(err, errNotJSON) {
		t.Errorf("an event that is no JSON passes: %v", err)
	}
}

func TestAPathThatCanNotBeFollowedIsRefused(t *testing.T) {
	for _, p := range []string{"", "email", "$x", "$.", "$..", "$[", "$[]", "$['a]", "$[-1]", "$[?(@.a)]", "$.a[0:2]", "$" + strings.Repeat(".a", 32+1)} {
		if steps, err := policy.ParseJSONPath(p); err == nil {
			t.Errorf("%q is read as %+v", p, steps)
		}
	}
}

// Whatever the document: if it passes, it is the same JSON but for the masked
// values, of which nothing is left.
func FuzzRewrite(f *testing.F) {
	for _, s := range []string{`{"email":"canary"}`, `[{"a":{"email":["canary",1]}}]`, `{"\u0065mail":"canary"}`, `{"email":{"canary":"canary"}}`, "\xef\xbb\xbf{}", `{"email":"can\u0061ry"}`} {
		f.Add([]byte(s))
	}
	m := maskingOf(f, nil, "$..email full")
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := rewrite(m, bytes.NewReader(in), false)
		slow, slowErr := rewrite(m, iotest.OneByteReader(bytes.NewReader(in)), false)
		if got != slow && err == nil || (err == nil) != (slowErr == nil) {
			t.Fatalf("%q: %q, %v at once and %q, %v byte by byte", in, got, err, slow, slowErr)
		}
		if err != nil {
			return
		}
		var before, after any
		if err := json.Unmarshal(bytes.TrimPrefix(in, []byte("\xef\xbb\xbf")), &before); err != nil {
			t.Fatalf("%q passes and is no JSON: %v", in, err)
		}
		if err := json.Unmarshal([]byte(got), &after); err != nil {
			t.Fatalf("%q becomes %q, which is no JSON: %v", in, got, err)
		}
		a, _ := json.Marshal(cover(before, false))
		b, _ := json.Marshal(after)
		if !bytes.Equal(a, b) {
			t.Fatalf("%q becomes %q, want %q", in, b, a)
		}
	})
}

// cover masks members called email as "full" does.
func cover(v any, masked bool) any {
	switch v := v.(type) {
	case map[string]any:
		if masked {
			return nil
		}
		for k := range v {
			v[k] = cover(v[k], k == "email")
		}
	case []any:
		for i := range v {
			v[i] = cover(v[i], masked)
		}
	case string:
		if masked {
			return "****"
		}
	case float64:
		if masked {
			return 0.0
		}
	case bool:
		if masked {
			return false
		}
	}
	return v
}

func BenchmarkRewrite(b *testing.B) {
	var doc bytes.Buffer
	doc.WriteString("[")
	for i := range 1000 {
		if i > 0 {
			doc.WriteString(",")
		}
		doc.WriteString(`{"id":17,"name":"Ann Example","email":"ann@example.com","address":{"street":"Long Street 17","city":"Town"},"notes":"some text that is longer than the rest of it all"}`)
	}
	doc.WriteString("]")
	m := maskingOf(b, nil, "$[*].email partial")
	b.SetBytes(int64(doc.Len()))
	for b.Loop() {
		if err := newRewriter(m, bytes.NewReader(doc.Bytes()), func([]byte) error { return nil }).document(false); err != nil {
			b.Fatal(err)
		}
	}
}
