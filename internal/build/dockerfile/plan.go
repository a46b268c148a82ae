package dockerfile

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"isle"
)

// Options are what is asked of a Dockerfile.
type Options struct {
	Target       string            // a stage's name or number; "" is the last one
	Args         map[string]string // values of ARG
	Architecture string            // GOARCH's name: "amd64"
	Network      bool              // steps have the recorded network
}

// A Plan is what a target needs.
type Plan struct {
	Stages  []Stage // in the order of the file
	Target  int     // its index in Stages
	Images  []string
	file    *File
	args    map[string]string
	network bool
	global  map[string]string // ARG before the first FROM, and the predefined ones

	// Its stages are gone through side by side.
	given    atomic.Int64 // bytes of variables that its words were given
	replaced atomic.Int64 // of words that replace, the squares of their bytes
}

// A Stage is one FROM that the target needs.
type Stage struct {
	Name  string // its name, or its number
	Line  int
	From  Source
	Needs []int // stages that it begins with, copies from or mounts, by index in Plan.Stages

	number int // in the file
}

// The kinds of a Source.
const (
	Context   = "context" // the build's own files
	Scratch   = "scratch" // nothing
	FromStage = "stage"
	FromImage = "image"
)

// A Source is where files come from.
type Source struct {
	Kind  string
	Stage int    // of FromStage: index in Plan.Stages
	Image string // of FromImage: a reference
}

// Plan finds out what a target needs. Errors are Invalid and name the line.
func (f *File) Plan(o Options) (*Plan, error) {
	p := &Plan{file: f, args: o.Args, network: o.Network}
	if err := p.checkArgs(); err != nil {
		return nil, err
	}
	target, err := f.target(o.Target)
	if err != nil {
		return nil, err
	}
	if err := p.globals(o, target); err != nil {
		return nil, err
	}
	platform := "linux/" + o.Architecture
	r := &resolver{plan: p, platform: platform, from: map[int]Source{}, needs: map[int][]int{}}
	if err := r.need(target); err != nil {
		return nil, err
	}
	numbers := slices.Sorted(maps.Keys(r.from))
	index := map[int]int{}
	for i, n := range numbers {
		index[n] = i
	}
	images := map[string]bool{}
	for _, n := range numbers {
		from := r.from[n]
		if from.Kind == FromStage {
			from.Stage = index[from.Stage]
		}
		s := Stage{Name: f.stageName(n), Line: f.stages[n].line, From: from, number: n}
		for _, other := range r.needs[n] {
			s.Needs = append(s.Needs, index[other])
		}
		slices.Sort(s.Needs)
		s.Needs = slices.Compact(s.Needs)
		p.Stages = append(p.Stages, s)
	}
	for _, i := range r.images {
		images[i] = true
	}
	p.Target = index[target]
	p.Images = slices.Sorted(maps.Keys(images))
	return p, nil
}

func (f *File) stageName(n int) string {
	if f.stages[n].name != "" {
		return f.stages[n].name
	}
	return strconv.Itoa(n)
}

// target is the stage that is asked for.
func (f *File) target(name string) (int, error) {
	if name == "" {
		return len(f.stages) - 1, nil
	}
	if n, ok := f.find(name, len(f.stages)); ok {
		return n, nil
	}
	var names []string
	for n := range f.stages {
		names = append(names, f.stageName(n))
	}
	return 0, isle.Errorf(isle.Invalid, "%s has no stage %q", f.name, clip(name)).WithHint("its stages are %s", strings.Join(names, ", "))
}

// find is the stage of a name or number among those before one.
func (f *File) find(name string, before int) (int, bool) {
	for n := range before {
		if f.stages[n].name != "" && strings.EqualFold(f.stages[n].name, name) {
			return n, true
		}
	}
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0 && n < before
}

// proxies are arguments that every Dockerfile has without saying so. There is no
// network for them.
func proxies() []string {
	return []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}
}

// checkArgs refuses arguments that would do nothing.
func (p *Plan) checkArgs() error {
	declared := map[string]bool{}
	see := func(c *instructions.ArgCommand) {
		for _, a := range c.Args {
			declared[a.Key] = true
		}
	}
	for _, c := range p.file.global {
		see(c)
	}
	for _, s := range p.file.stages {
		for _, c := range s.commands {
			if a, ok := c.Command.(*instructions.ArgCommand); ok {
				see(a)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.args)) {
		switch {
		case declared[name]:
		case slices.Contains(proxies(), strings.ToUpper(name)):
			return isle.Errorf(isle.Invalid, "args.%s: steps have no network, and so no proxy", clip(name))
		case strings.HasPrefix(name, "BUILDKIT_"):
			return isle.Errorf(isle.Invalid, "args.%s is for BuildKit itself, and Isle's own builder builds this", clip(name))
		default:
			return isle.Errorf(isle.Invalid, "args.%s: %s has no ARG of that name", clip(name), p.file.name).WithHint("remove it, or write ARG %s where it is used", clip(name))
		}
	}
	return nil
}

// globals are the values that FROM lines see, and ARG without a value takes.
func (p *Plan) globals(o Options, target int) error {
	platform := "linux/" + o.Architecture
	stage := p.file.stages[target].name
	if o.Target == "" {
		stage = "default"
	}
	p.global = map[string]string{
		"BUILDPLATFORM": platform, "BUILDOS": "linux", "BUILDARCH": o.Architecture, "BUILDOSVERSION": "", "BUILDVARIANT": "",
		"TARGETPLATFORM": platform, "TARGETOS": "linux", "TARGETARCH": o.Architecture, "TARGETOSVERSION": "", "TARGETVARIANT": "",
		"TARGETSTAGE": stage,
	}
	for name := range p.global {
		if v, ok := p.args[name]; ok {
			p.global[name] = v
		}
	}
	lex := shell.NewLex(p.file.escape)
	for _, c := range p.file.global {
		line := 0
		if at := c.Location(); len(at) > 0 {
			line = at[0].Start.Line
		}
		for _, a := range c.Args {
			value, given := p.args[a.Key]
			if !given && a.Value != nil {
				var err error
				if value, err = p.expand(lex, *a.Value, p.global, line); err != nil {
					return err
				}
			}
			if given || a.Value != nil {
				p.global[a.Key] = value
			}
		}
	}
	return nil
}

// expand puts variables into a word.
func (p *Plan) expand(lex *shell.Lex, word string, env map[string]string, line int) (string, error) {
	words, err := p.process(word, env, line, func(v shell.EnvGetter) ([]string, error) {
		out, _, err := lex.ProcessWord(word, v)
		return []string{out}, err
	})
	if err != nil {
		return "", err
	}
	return words[0], nil
}

// process calls lexer for a word, with variables that end it where it is given
// more of them than there is room for: what it makes of a word is there before its
// length can be looked at.
func (p *Plan) process(word string, env map[string]string, line int, lexer func(shell.EnvGetter) ([]string, error)) (words []string, err error) {
	room := roomFor(word)
	tooLong := func() error {
		return p.file.fail(line, "a word has more than %d bytes with its variables", room)
	}
	if len(word) > room {
		return nil, tooLong()
	}
	v := &variables{env: env, room: room - len(word), given: &p.given}
	defer func() {
		if r := recover(); r != nil {
			if r != any(v) {
				panic(r)
			}
			words, err = nil, tooLong()
		}
	}()
	if words, err = lexer(v); err != nil {
		return nil, p.file.fail(line, "%v", err)
	}
	if room < maxWord { // it replaces: one takes a second at most, and a Dockerfile may have thousands
		n := int64(room - v.room)
		if p.replaced.Add(n*n) > maxReplaced {
			return nil, p.file.fail(line, "what is replaced in variables (${A//x/y}, ${A#%%x}) takes too long; have shorter ones, or do it in a RUN")
		}
	}
	return words, nil
}

// roomFor is how many bytes a word and the variables in it can have. ${A//x/y}
// makes the product of two texts, and of three where one stands in another; so
// what it makes stays below 64 MiB. ${A%x} and ${A#x} take as much time.
func roomFor(word string) int {
	replaced := 0
	for rest := word; ; {
		_, after, found := strings.Cut(rest, "${")
		if !found {
			break
		}
		rest = strings.TrimLeftFunc(after, func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) })
		if len(rest) == len(after) && rest != "" { // ${?…}: a name of one character
			rest = rest[1:]
		}
		if rest != "" && strings.ContainsRune("/#%", rune(rest[0])) {
			replaced++
		}
	}
	switch replaced {
	case 0:
		return maxWord
	case 1:
		return 16 << 10
	case 2:
		return 1200
	case 3:
		return 360
	case 4:
		return 180
	}
	return 100
}

// variables are a shell.EnvGetter that gives no more bytes than there is room for.
// Where there is none, it panics with itself.
type variables struct {
	env   map[string]string
	room  int           // bytes, of one word
	given *atomic.Int64 // and of all, those that were given
}

func (v *variables) Get(name string) (string, bool) {
	value, ok := v.env[name]
	v.room -= len(value)
	if v.given.Add(int64(len(value))) > maxGiven || v.room < 0 {
		panic(v)
	}
	return value, ok
}

func (v *variables) Keys() []string { return slices.Sorted(maps.Keys(v.env)) }

// A resolver finds the stages that a target needs.
type resolver struct {
	plan     *Plan
	platform string
	from     map[int]Source // by number; a stage's index is a number yet
	needs    map[int][]int
	images   []string
}

// need adds a stage and all that it needs. Stages need earlier ones only, so
// there is an end.
func (r *resolver) need(n int) error {
	if _, ok := r.from[n]; ok {
		return nil
	}
	f, s := r.plan.file, r.plan.file.stages[n]
	lex := shell.NewLex(f.escape)
	if err := r.checkPlatform(lex, s); err != nil {
		return err
	}
	name, err := r.plan.expand(lex, s.from, r.plan.global, s.line)
	if err != nil {
		return err
	}
	if name == "" {
		return f.fail(s.line, "FROM %s is empty once its variables are in", clip(s.from)).WithHint("give the ARG a default before the first FROM, or a value in args")
	}
	source := r.source(name, n, false)
	r.from[n] = source
	if source.Kind == FromStage {
		r.needs[n] = append(r.needs[n], source.Stage)
	}
	for _, c := range s.commands {
		for _, from := range sourcesOf(c.Command) {
			if strings.ContainsRune(from, '$') {
				return f.fail(c.line, "from=%s: a variable cannot name what is copied from or mounted; begin a stage with it: FROM %[1]s AS NAME", clip(from))
			}
			if f.laterStage(from, n) {
				return f.fail(c.line, "stage %q begins after this one, and nothing can come from it here", clip(from))
			}
			if s := r.source(from, n, true); s.Kind == FromStage {
				r.needs[n] = append(r.needs[n], s.Stage)
			}
		}
	}
	for _, other := range r.needs[n] {
		if err := r.need(other); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) laterStage(name string, n int) bool {
	if _, ok := f.find(name, n); ok {
		return false
	}
	_, ok := f.find(name, len(f.stages))
	return ok
}

// source is what a name means in stage n. FROM takes names only, and --from
// numbers too.
func (r *resolver) source(name string, n int, numbers bool) Source {
	other, ok := r.plan.file.find(name, n)
	if _, err := strconv.Atoi(name); err == nil && !numbers {
		ok = false
	}
	switch {
	case ok:
		return Source{Kind: FromStage, Stage: other}
	case name == "scratch":
		return Source{Kind: Scratch}
	}
	r.images = append(r.images, name)
	return Source{Kind: FromImage, Image: name}
}

// sourcesOf are the names that an instruction has files from.
func sourcesOf(c instructions.Command) (names []string) {
	switch c := c.(type) {
	case *instructions.CopyCommand:
		if c.From != "" {
			names = append(names, c.From)
		}
	case *instructions.RunCommand:
		for _, m := range instructions.GetMounts(c) {
			if m.From != "" {
				names = append(names, m.From)
			}
		}
	}
	return names
}

func (r *resolver) checkPlatform(lex *shell.Lex, s stage) error {
	if s.platform == "" {
		return nil
	}
	want, err := r.plan.expand(lex, s.platform, r.plan.global, s.line)
	if err != nil {
		return err
	}
	if want != r.platform {
		return r.plan.file.fail(s.line, "--platform=%s: steps run on this machine, which is %s", clip(want), r.platform)
	}
	return nil
}
