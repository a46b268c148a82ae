package build

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"

	"isle"
	"isle/internal/build/dockerfile"
	"isle/internal/build/recorder"
	"isle/internal/conceal"
	"isle/internal/image"
	"isle/internal/initproto"
	"isle/internal/spec"
)

// Where a step with the recorded network finds whom to trust: mounted, and in no
// layer.
const (
	trustPath  = "/dev/isle/ca.pem"
	aptPath    = "/dev/isle/apt.conf"
	wgetPath   = "/dev/isle/wgetrc"
	aptConfig  = "Acquire::https::CaInfo \"" + trustPath + "\";\nAcquire::Check-Valid-Until \"false\"; // what is replayed was valid when it was recorded\n"
	wgetConfig = "ca_certificate = " + trustPath + "\n"
)

// trustEnv has the variables by which programs are told whom to trust: OpenSSL
// and Go, curl, Python, Node.js, Rust, git and others. They are the step's alone.
func trustEnv() map[string]string {
	env := map[string]string{"APT_CONFIG": aptPath, "WGETRC": wgetPath}
	for _, name := range []string{
		"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "CARGO_HTTP_CAINFO", "GIT_SSL_CAINFO",
		"AWS_CA_BUNDLE", "DENO_CERT", "HEX_CACERTS_PATH", "NIX_SSL_CERT_FILE", "PERL_LWP_SSL_CA_FILE",
	} {
		env[name] = trustPath
	}
	return env
}

// A wire is the recorded network of one step: what it is to be answered, and then
// what it was.
type wire struct {
	stage, step string
	locked      []spec.Material   // its own
	steps       []spec.LockedStep // of the service; those of other steps are as good
	frozen      bool
	reach       func(host string, port int) error // nil: any
	used        []spec.Material
	fresh       int // of used, those that no lock had
	ran         bool
}

// networkInput is what a step with the recorded network is answered.
type networkInput struct {
	Answers []answerInput `json:"answers,omitempty"`
}

type answerInput struct {
	Request string      `json:"request"`
	Digest  isle.Digest `json:"digest"` // of the whole answer
}

func answersOf(materials []spec.Material) *networkInput {
	in := &networkInput{}
	for _, m := range materials {
		b, err := json.Marshal(m)
		if err != nil {
			panic(err) // texts, numbers and a time of four digits' year
		}
		in.Answers = append(in.Answers, answerInput{strings.TrimSpace(m.Method + " " + m.URL), isle.DigestOf(b)})
	}
	return in
}

// newWire is the network of a step, as the lock has it. seen counts the steps of
// its stage by their text, so that two that are the same are told apart.
func newWire(sl spec.ServiceLock, stage, text string, o Options, seen map[string]int) *wire {
	text = strings.ToValidUTF8(strings.Join(strings.Fields(text), " "), "\uFFFD")
	if r := []rune(text); len(r) > 400 {
		text = string(r[:400]) + "…"
	}
	seen[text]++
	if n := seen[text]; n > 1 {
		text = fmt.Sprintf("%s (%d)", text, n)
	}
	w := &wire{stage: stage, step: text, frozen: o.Frozen, reach: o.Reach, steps: sl.Network}
	for _, s := range sl.Network {
		if s.Stage == stage && s.Step == text {
			w.locked = s.Materials
		}
	}
	w.used = w.locked
	return w
}

// open gives a step its network, in which nothing of secrets is kept. finish ends it,
// and is given how the step ended.
func (w *wire) open(b *Builder, st *Step, secrets *conceal.Forms, say func(Event)) (finish func(error) error, err error) {
	if w == nil {
		return func(err error) error { return err }, nil
	}
	r, err := w.record(b, secrets, say)
	if err != nil {
		return nil, err
	}
	st.Network = r
	for name, value := range trustEnv() {
		st.Env[name] = value
	}
	names, err := resolvConf(st.Layers)
	if err != nil {
		r.Close()
		return nil, err
	}
	server, _, _ := strings.Cut(initproto.HomeAddress, ":")
	for path, content := range map[string][]byte{
		trustPath: r.Trust(), aptPath: []byte(aptConfig), wgetPath: []byte(wgetConfig),
		names: []byte("nameserver " + server + "\noptions ndots:0 timeout:2 attempts:2\n"),
	} {
		st.Mounts = append(st.Mounts, Mount{Target: path, ReadOnly: true, Content: content, Mode: 0o644})
	}
	return func(err error) error { return w.finish(r, err, say) }, nil
}

// others are the materials of other steps. They are gathered for a step that runs:
// a lock may have very many, and a build very many steps.
func (w *wire) others() (all []spec.Material) {
	for _, s := range w.steps {
		if s.Stage != w.stage || s.Step != w.step {
			all = append(all, s.Materials...)
		}
	}
	return all
}

// record begins to answer.
func (w *wire) record(b *Builder, secrets *conceal.Forms, say func(Event)) (*recorder.Recorder, error) {
	dial := b.Dial
	if dial != nil && w.reach != nil {
		dial = func(ctx context.Context, host string, port int) (net.Conn, error) {
			if err := w.reach(host, port); err != nil {
				return nil, err
			}
			return b.Dial(ctx, host, port)
		}
	}
	return recorder.New(recorder.Config{Store: b.Images, Dial: dial, Roots: b.Roots, Now: b.Now}, recorder.Options{
		Locked: w.locked, Others: w.others(), Frozen: w.frozen, Secrets: secrets, Say: func(m string) { say(Event{State: "log", Message: m}) },
	})
}

// finish ends what record began. err is how the step ended.
func (w *wire) finish(r *recorder.Recorder, err error, say func(Event)) error {
	r.Close()
	if err := r.Judge(err); err != nil {
		return err
	}
	w.take(r)
	if n := len(w.used); n > 0 && w.step != "" {
		say(Event{State: "log", Message: fmt.Sprintf("network: %s, %d of them new in isle.lock", count(n, "request"), w.fresh)})
	}
	return nil
}

// fetch has the files of an ADD that are elsewhere, and returns their contents. A
// file with a checksum is what it is, wherever it comes from: w may be nil, and
// what the store has is not asked for.
func (w *wire) fetch(ctx context.Context, b *Builder, o Options, op *dockerfile.Copy, say func(Event)) ([]isle.Digest, error) {
	if w == nil {
		if len(b.Images.Missing([]isle.Digest{op.Checksum})) == 0 {
			return []isle.Digest{op.Checksum}, nil
		}
		w = &wire{reach: o.Reach}
	}
	r, err := w.record(b, nil, say)
	if err != nil {
		return nil, err
	}
	var out []isle.Digest
	for _, f := range op.Remote {
		m, ferr := r.Get(ctx, f.URL)
		if err = ferr; err == nil && op.Checksum != "" && m.Digest != op.Checksum {
			err = isle.Errorf(isle.Failed, "what it got has %s, not %s", m.Digest, op.Checksum).WithHint("the file was changed where it is, or the checksum is another's")
		}
		if err != nil {
			break
		}
		out = append(out, m.Digest)
	}
	return out, w.finish(r, err, say)
}

// resolvConf is where a step's programs find whom to ask for names: what its
// layers have there is often empty, and may be a link.
func resolvConf(layers []string) (string, error) {
	stack, err := image.OpenStack(layers)
	if err != nil {
		return "", err
	}
	defer stack.Close()
	at, err := stack.Resolve("/etc/resolv.conf")
	if err == nil && !dockerfile.MayMount(at) {
		err = isle.Errorf(isle.Invalid, "/etc/resolv.conf of the image leads to %.200s through a symbolic link, which is the sandbox's own", at)
	}
	return at, err
}

// take notes what the step was answered. A frozen lock stays as it is, even if
// the step asked for less this time; what another step's materials answered counts
// besides, for what it made is found by everybody who has the same inputs.
func (w *wire) take(r *recorder.Recorder) {
	w.ran, w.fresh, w.used = true, r.Fresh(), r.Materials()
	if !w.frozen {
		return
	}
	answered := map[string]bool{}
	for _, m := range w.used {
		answered[m.Key()] = true
	}
	for _, m := range w.locked {
		if !answered[m.Key()] {
			w.used = append(w.used, m)
		}
	}
	slices.SortFunc(w.used, spec.CompareMaterials)
}

// networkOf are the steps' answers as a lock has them.
func networkOf(wires []*wire) (out []spec.LockedStep) {
	for _, w := range wires {
		if w != nil && len(w.used) > 0 {
			out = append(out, spec.LockedStep{Stage: w.stage, Step: w.step, Materials: w.used})
		}
	}
	return out
}

// maxKept bounds how many steps the lock of a build that failed has of the one
// before: each failure could leave one that is no step any more.
const maxKept = 256

// keepAnswers is what a lock had of steps, and what they were answered since.
func keepAnswers(had, since []spec.LockedStep) []spec.LockedStep {
	out := slices.Clone(since)
	for _, h := range had {
		if len(out) < maxKept && !slices.ContainsFunc(since, func(s spec.LockedStep) bool { return s.Stage == h.Stage && s.Step == h.Step }) {
			out = append(out, h)
		}
	}
	return out
}

// A Recording is what one step asked for while it ran.
type Recording struct {
	Service string
	Step    string
	Answers isle.Digest // of what it was answered, as the lock has it
	Count   int
	New     int // of them, those that were not locked
}

// recordings tells of the steps that ran.
func recordings(service string, wires []*wire) (out []Recording) {
	for _, w := range wires {
		if w == nil || !w.ran || len(w.used) == 0 {
			continue
		}
		b, err := json.Marshal(w.used)
		if err != nil {
			panic(err) // as in answersOf
		}
		out = append(out, Recording{Service: service, Step: w.step, Answers: isle.DigestOf(b), Count: len(w.used), New: w.fresh})
	}
	return out
}

// keptNetwork is what of an old lock a new one goes on with.
func keptNetwork(old *spec.Lock, s spec.Service, o LockOptions) []spec.LockedStep {
	if old == nil || o.Update || s.Network != spec.NetworkRecord {
		return nil
	}
	return old.Services[s.Name].Network
}

// networkDifference says how much of what steps were answered differs.
func networkDifference(was, is []spec.LockedStep) string {
	before, after := map[string]isle.Digest{}, map[string]isle.Digest{}
	for list, into := range map[*[]spec.LockedStep]map[string]isle.Digest{&was: before, &is: after} {
		for _, s := range *list {
			for _, a := range answersOf(s.Materials).Answers {
				into[s.Stage+"\n"+s.Step+"\n"+a.Request] = a.Digest
			}
		}
	}
	var gone, came, changed int
	for k, d := range after {
		if have, ok := before[k]; !ok {
			came++
		} else if have != d {
			changed++
		}
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			gone++
		}
	}
	if gone+came+changed == 0 {
		return ""
	}
	return fmt.Sprintf("recorded network: %d new, %d changed, %d gone", came, changed, gone)
}

// networkChange names the first answer that a step has otherwise than before.
func networkChange(was, is *networkInput) string {
	switch {
	case was == nil:
		return "it has the recorded network now"
	case is == nil:
		return "it has no network any more"
	case len(is.Answers) == 0:
		return "nothing is locked of what it asks the network for"
	}
	for _, a := range is.Answers {
		if !slices.Contains(was.Answers, a) {
			return "the answer of " + title(a.Request) + " changed"
		}
	}
	return "it asks the network for less"
}
