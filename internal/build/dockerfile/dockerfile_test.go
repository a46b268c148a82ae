package dockerfile

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"isle"
	"isle/internal/image"
)

// ops walks the target of a Dockerfile and all that it needs, every image being
// without configuration, and returns the target's ops and configuration.
func ops(content string, o Options) (all []Op, c image.Config, err error) {
	if o.Architecture == "" {
		o.Architecture = "amd64"
	}
	f, err := Parse("Dockerfile", []byte(content))
	if err != nil {
		return nil, c, err
	}
	p, err := f.Plan(o)
	if err != nil {
		return nil, c, err
	}
	walks := make([]*Walk, len(p.Stages))
	for i, s := range p.Stages {
		var base *image.Config
		var below *Walk
		if s.From.Kind == FromStage {
			below = walks[s.From.Stage]
			c := below.Config()
			base = &c
		}
		if walks[i], err = p.Walk(i, base, below); err != nil {
			return nil, c, err
		}
		all = nil
		for {
			op, err := walks[i].Next()
			if err != nil {
				return nil, c, err
			}
			if op == nil {
				break
			}
			all = append(all, op)
		}
		if i == p.Target {
			return all, walks[i].Config(), nil
		}
	}
	return all, c, nil
}

func TestWhatIsNotDoneIsAnErrorWithItsLine(t *testing.T) {
	for name, c := range map[string]struct{ content, want string }{
		"nothing":                {"# only a comment\n", "Dockerfile:1: file with no instructions"},
		"no FROM":                {"ARG A\n", "Dockerfile has no FROM"},
		"before FROM":            {"RUN x\nFROM a\n", "Dockerfile:1: RUN stands before the first FROM"},
		"unknown instruction":    {"FROM a\nRUM x\n", "Dockerfile:2: unknown instruction: RUM"},
		"two stages of one name": {"FROM a AS x\nFROM b AS X\n", "Dockerfile:2: stage 0 is called"},
		"another syntax":         {"# syntax=example.com/evil\nFROM a\n", "Dockerfile:1: syntax=example.com/evil"},
		"a newer syntax":         {"# syntax=docker/dockerfile:1.99\nFROM a\n", "Dockerfile:1: syntax="},
		"labs":                   {"# syntax=docker/dockerfile:1-labs\nFROM a\n", "Dockerfile:1: syntax="},
		"check":                  {"# check=error=true\nFROM a\n", "Dockerfile:1: check= is for"},
		"an empty FROM":          {"ARG X\nFROM $X\n", "Dockerfile:2: FROM $X is empty"},
		"another platform":       {"FROM --platform=linux/arm64 a\n", "Dockerfile:1: --platform=linux/arm64"},
		"host network":           {"FROM a\n\nRUN --network=host x\n", "Dockerfile:3: --network=host"},
		"insecure":               {"FROM a\nRUN --security=insecure x\n", "Dockerfile:2: --security=insecure"},
		"a device":               {"FROM a\nRUN --device=vendor.com/x=y x\n", "Dockerfile:2"},
		"an agent":               {"FROM a\nRUN --mount=type=ssh,required x\n", "Dockerfile:2: --mount=type=ssh"},
		"an unknown mount":       {"FROM a\nRUN --mount=type=nfs,target=/x x\n", "Dockerfile:2: unsupported mount type"},
		"a mount of nothing":     {"FROM a\nRUN --mount=type=bind x\n", "Dockerfile:2: --mount=type=bind has no target"},
		"a mount of the root":    {"FROM a\nRUN --mount=type=tmpfs,target=/ x\n", "Dockerfile:2: --mount=type=tmpfs: the root"},
		"a mount over /proc":     {"FROM a\nRUN --mount=type=tmpfs,target=/proc/x x\n", "Dockerfile:2: --mount=type=tmpfs: /proc/x"},
		"a cache of nobody":      {"FROM a\nRUN --mount=type=cache,target=/x,uid=4294967295 x\n", "Dockerfile:2: --mount: uid and gid are at most 65535"},
		"a cache of no mode":     {"FROM a\nRUN --mount=type=cache,target=/x,mode=10777 x\n", "Dockerfile:2: --mount: mode 010777"},
		"a tmpfs below nothing":  {"FROM a\nRUN --mount=type=tmpfs,target=/x,size=-1 x\n", "Dockerfile:2: "},
		"a cache from a stage":   {"FROM a AS x\nFROM a\nRUN --mount=type=cache,from=x,target=/x x\n", "Dockerfile:3: --mount=type=cache"},
		"a URL":                  {"FROM a\nADD https://example.com/x /\n", "Dockerfile:2: ADD https://example.com/x"},
		"a repository":           {"FROM a\nADD git@example.com:x.git /\n", "Dockerfile:2: ADD git@example.com"},
		"COPY of a URL":          {"FROM a\nCOPY http://example.com/x /\n", "Dockerfile:2: COPY http"},
		"a checksum of a file":   {"FROM a\nADD --checksum=sha256:00 x /\n", "Dockerfile:2: ADD --checksum"},
		"keep-git-dir":           {"FROM a\nADD --keep-git-dir x /\n", "Dockerfile:2: ADD --keep-git-dir"},
		"an unknown flag":        {"FROM a\nCOPY --owner=1 x /\n", "Dockerfile:2: unknown flag: --owner"},
		"several to no folder":   {"FROM a\nCOPY x y /z\n", "Dockerfile:2: several things are copied to /z"},
		"a later stage":          {"FROM a\nCOPY --from=b /x /\nFROM a AS b\nFROM 0\n", ""},
		"a stage after":          {"FROM a AS x\nCOPY --from=y /x /\nFROM x AS y\n", "Dockerfile:2: stage \"y\" begins after"},
		"itself":                 {"FROM a AS x\nCOPY --from=x /x /\n", "Dockerfile:2: stage \"x\" begins after"},
		"a variable stage":       {"FROM a\nARG X\nCOPY --from=$X /x /\n", "Dockerfile:3: from=$X"},
		"copying from nothing":   {"FROM a\nCOPY --from=scratch /x /\n", "Dockerfile:2: from=scratch"},
		"a port of the machine":  {"FROM a\nEXPOSE 8080:80\n", "Dockerfile:2: EXPOSE 8080:80"},
		"no port":                {"FROM a\nEXPOSE 80/ftp\n", "Dockerfile:2: EXPOSE 80/ftp"},
		"a million ports":        {"FROM a\nEXPOSE 1-65535\n", "Dockerfile:2: EXPOSE 1-65535"},
		"no signal":              {"FROM a\nSTOPSIGNAL SIGNOPE\n", "Dockerfile:2: STOPSIGNAL SIGNOPE"},
		"ONBUILD ONBUILD":        {"FROM a\nONBUILD ONBUILD RUN x\n", "Dockerfile:2: Chaining ONBUILD"},
		"ONBUILD FROM":           {"FROM a\nONBUILD FROM x\n", "Dockerfile:2: FROM isn't allowed"},
		"ONBUILD from a stage":   {"FROM a AS x\nFROM a AS p\nONBUILD COPY --from=x /x /\nFROM p\n", "Dockerfile:4: from= in ONBUILD"},
		"a required value":       {"FROM a\nWORKDIR ${X:?is needed}\n", "Dockerfile:2"},
		"SHELL as text":          {"FROM a\nSHELL /bin/sh -c\n", "Dockerfile:2"},
		"not UTF-8":              {"FROM a\nRUN \xff\n", "Dockerfile is not UTF-8"},
		"a NUL":                  {"FROM a\nRUN a\x00b\n", "Dockerfile is not UTF-8"},
		"a here-document's end":  {"FROM a\nRUN <<EOF\nx\n", "Dockerfile:"},
		"exec form with a file":  {"FROM a\nRUN [\"cat\", \"<<EOF\"]\n", ""},
	} {
		_, _, err := ops(c.content, Options{})
		switch {
		case c.want == "" && err != nil && name != "a later stage":
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || isle.CodeOf(err) != isle.Invalid || !strings.HasPrefix(err.Error(), c.want) && !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, and not %s", name, err, c.want)
		}
	}
}

func TestArgumentsThatDoNothingAreRefused(t *testing.T) {
	for _, name := range []string{"NONE", "http_proxy", "BUILDKIT_INLINE_CACHE", "TARGETARCH"} {
		if _, _, err := ops("FROM a\nARG A\n", Options{Args: map[string]string{name: "x"}}); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOnlyWhatTheTargetNeedsIsPlanned(t *testing.T) {
	f, err := Parse("Dockerfile", []byte("FROM a AS one\nFROM broken AS two\nFROM one AS three\nCOPY --from=tools /x /\nRUN --mount=from=four-image,target=/m x\nFROM never\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Plan(Options{Target: "three", Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "four-image", "tools"}; !reflect.DeepEqual(p.Images, want) {
		t.Errorf("images %v", p.Images)
	}
	if len(p.Stages) != 2 || p.Stages[1].From != (Source{Kind: FromStage, Stage: 0}) || !reflect.DeepEqual(p.Stages[1].Needs, []int{0}) || p.Target != 1 {
		t.Errorf("%+v, target %d", p.Stages, p.Target)
	}
}

func TestARunHasWhatItsStageSays(t *testing.T) {
	all, c, err := ops("FROM a\nARG V=1\nENV PATH=/x:$PATH\nUSER app\nSHELL [\"/bin/bash\", \"-c\"]\nRUN --mount=type=cache,target=cache,uid=5 <<EOF\nmake $V\nEOF\nWORKDIR /w\nRUN [\"x\", \"$V\"]\n", Options{})
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	run := all[0].(*Run)
	want := &Run{
		At: Place{"Dockerfile", 6, "RUN --mount=type=cache,target=cache,uid=5 <<EOF"}, Command: []string{"/bin/bash", "-c", "make $V\n"},
		Env: map[string]string{"V": "1", "PATH": "/x:" + DefaultPath}, User: "app", Dir: "/",
		Mounts: []Mount{{Type: "cache", Target: "/cache", ID: "cache", Sharing: "shared", Mode: 0o755, UID: 5}},
	}
	if !reflect.DeepEqual(run, want) {
		t.Errorf("%+v\nnot\n%+v", run, want)
	}
	if second := all[2].(*Run); second.Dir != "/w" || !reflect.DeepEqual(second.Command, []string{"x", "$V"}) {
		t.Errorf("%+v", second)
	}
	if c.User != "app" || c.Workdir != "/w" || !reflect.DeepEqual(c.Env, []string{"PATH=/x:" + DefaultPath}) || !reflect.DeepEqual(c.Shell, []string{"/bin/bash", "-c"}) {
		t.Errorf("%+v", c)
	}
}

func TestOnBuildOfAHostileImageIsBounded(t *testing.T) {
	f, err := Parse("Dockerfile", []byte("FROM a\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Plan(Options{Architecture: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	for name, triggers := range map[string][]string{
		"itself":        {"ONBUILD RUN x"},
		"a stage":       {"FROM x"},
		"two":           {"RUN x\nRUN y"},
		"nothing":       {""},
		"a comment":     {"# x"},
		"not a word":    {"\x00"},
		"without end":   {"RUN <<EOF"},
		"too many":      make([]string, maxTriggers+1),
		"too large":     {"RUN " + strings.Repeat("x", MaxSize)},
		"another image": {"COPY --from=evil /x /"},
	} {
		if _, err := p.Walk(0, &image.Config{OnBuild: triggers}, nil); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVariablesThatGrowWithoutEndAreStopped(t *testing.T) {
	var b strings.Builder
	b.WriteString("FROM a\nENV A=xxxxxxxxxxxxxxxx\n")
	for range 40 { // 2^40 times as long
		b.WriteString("ENV A=$A$A\n")
	}
	if _, _, err := ops(b.String(), Options{}); err == nil || !strings.Contains(err.Error(), "a word has more than") {
		t.Error(err)
	}
}

// Each of these took gigabytes, or minutes, of the server.
func TestAHostileDockerfileTakesLittleOfTheServer(t *testing.T) {
	long := func(s string) string { // in lines that go on
		var b strings.Builder
		for len(s) > 60000 {
			b.WriteString(s[:60000] + "\\\n")
			s = s[60000:]
		}
		return b.String() + s
	}
	numbered := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	x := strings.Repeat("x", 60000)
	for name, c := range map[string]struct{ content, want string }{
		"a variable many times":      {"FROM a\nENV A=" + x + "\nENV B=" + strings.Repeat("$A", 20000), "a word has more than"},
		"many large words":           {"FROM a\nENV A=" + x + "\n" + strings.Repeat("LABEL a=$A$A$A$A\n", 4000), "a word has more than"},
		"many large variables":       {"FROM a\nENV A=" + x + "\n" + numbered("ENV A%d=$A\n", 4000), "more than 1048576 bytes"},
		"a large text for each byte": {"FROM a\nENV A=" + x + "\nENV B=${A//x/$A}", "a word has more than"},
		"texts in texts in texts":    {"FROM a\nENV A=" + x[:100] + "\nENV B=${A//x/${A//x/${A//x/${A//x/$A}}}}", "a word has more than"},
		"a pattern of many stars":    {"FROM a\nENV A=" + x + "\nENV B=${A%%" + strings.Repeat("*x", 20000) + "}", "a word has more than"},
		"many words that replace":    {"FROM a\nENV A=" + x[:8000] + " P=" + strings.Repeat("*", 7900) + "b\n" + strings.Repeat("ENV B=${A#$P}\n", 500), "takes too long"},
		"many variables":             {"FROM a\n" + long("ENV "+numbered("A%d=b ", 20000)), "more than 4096 variables"},
		"many volumes":               {"FROM a\n" + long("VOLUME "+numbered("/%d ", 20000)), "more than 1024 volumes"},
		"many sources":               {"FROM a\n" + long("COPY "+strings.Repeat(". ", 20000)+"/x/"), "more than 1024 things"},
		"many patterns":              {"FROM a\n" + long("COPY "+strings.Repeat("--exclude=? ", 10000)+"x /x/"), "more than 1024 things"},
		"many mounts":                {"FROM a\nRUN " + strings.Repeat("--mount=type=tmpfs,target=/x ", 100) + "x", "more than 64 mounts"},
		"ONBUILD of ONBUILD":         {"FROM a\n" + long(strings.Repeat("ONBUILD ", 20000)+"RUN x"), "ONBUILD more than"},
		"many lines in one":          {"FROM a\nRUN <<A\n" + strings.Repeat("x\n", 50000) + "A", "more than 16384 lines"},
		"a long error":               {"FROM a\n" + long("ENV A="+strings.Repeat("\"'", 50000)), "…"},
	} {
		_, _, err := ops(c.content+"\n", Options{})
		if isle.CodeOf(err) != isle.Invalid || !strings.Contains(fmt.Sprint(err), c.want) || len(err.Error()) > 600 {
			t.Errorf("%s: %.200v, and not %s", name, err, c.want)
		}
	}
}

func TestWordsThatReplaceAreReplaced(t *testing.T) {
	all, _, err := ops("FROM a\nARG V=1.2.3\nENV A=${V//./_} B=${V%.*}-${V#*.} C=${V/1/${V%%.*}0}\nRUN x\n", Options{})
	if err != nil {
		t.Fatal(err)
	}
	env := all[0].(*Run).Env
	if env["A"] != "1_2_3" || env["B"] != "1.2-2.3" || env["C"] != "10.2.3" {
		t.Error(env)
	}
}

func FuzzDockerfile(f *testing.F) {
	for _, s := range []string{
		"FROM a\nRUN x\n", "# escape=`\nFROM a AS b\nCOPY --from=0 a b /c/\n", "FROM scratch\nADD --chown=1:2 <<E /\n$A\nE\n", "ARG A=1\nFROM a:${A:-x}\nENV B=${A#x} C=${A//a/b}\n",
		"FROM a\nRUN --mount=type=cache,target=/x,sharing=locked <<-E cat\n\tx\nE\n", "FROM a\nHEALTHCHECK --interval=1s CMD x\nEXPOSE 1-9/udp $P\nVOLUME [\"/a\"]\nONBUILD RUN x\nLABEL a=b\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, content string) {
		_, _, err := ops(content, Options{Args: map[string]string{}})
		if err != nil && isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%v is no error of the file", err)
		}
	})
}
