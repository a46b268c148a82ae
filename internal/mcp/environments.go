package mcp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"isle"
	islev1 "isle/internal/api/isle/v1"
)

// How long things may take, unless the agent says otherwise, and at most.
const (
	upUsual   = 30 * time.Minute
	callMost  = 24 * time.Hour
	quickCall = 2 * time.Minute // of what only looks
)

func (s *Server) addEnvironments() {
	add(s, tool{
		name: "up", title: "Launch or update an environment", hint: adds, repeatable: true, outside: true,
		description: "Make an environment what its file isle.yaml says: lock, build and launch what is needed, and wait until it is healthy. Call it again after any change of the project's files: only the services that changed are replaced, volumes are kept, and the result says why each was replaced. The first build of a project may take minutes.",
	}, s.up)
	add(s, tool{
		name: "ls", title: "List environments", hint: reads,
		description: "List the environments that there are, with their phase, services and published ports.",
	}, s.ls)
	add(s, tool{
		name: "status", title: "Look at one environment", hint: reads,
		description: "Say how one environment is: each service's phase, restarts, exit code and last message, published ports, use of memory and volumes.",
	}, s.status)
	add(s, tool{
		name: "logs", title: "Read what services wrote", hint: reads,
		description: "Read the last lines that an environment's services wrote to their standard output and error, oldest first. Of a service that failed, this says why.",
	}, s.logs)
	add(s, tool{
		name: "doors", title: "List what may be reached", hint: reads,
		description: "List what an environment may reach outside, and what it tried to reach: each destination is open, refused or held, with the reason. For access to what is refused see the tool request.",
	}, s.doors)
	add(s, tool{
		name: "down", title: "Tear environments down", hint: destroys,
		description: "Tear environments down. Their volumes are kept, and are there again after the next up, unless volumes is true: that deletes their data for good.",
	}, s.down)
}

// An environment is how one is shown: what an agent needs to go on.
type environment struct {
	Environment string    `json:"environment" jsonschema:"what to call it in other tools: NAME, or NAME@STAGE"`
	Project     string    `json:"project"`
	Branch      string    `json:"branch,omitempty"`
	Phase       string    `json:"phase" jsonschema:"pending, starting, running, unhealthy, exited, failed, stopping or down"`
	Owner       string    `json:"owner"`
	Parent      string    `json:"parent,omitempty" jsonschema:"the environment that it was copied from"`
	Isolation   string    `json:"isolation,omitempty"`
	Created     string    `json:"created,omitempty"`
	Expires     string    `json:"expires,omitempty" jsonschema:"when it ends by itself"`
	Services    []service `json:"services"`
	Volumes     []volume  `json:"volumes,omitempty" jsonschema:"where data can be written and stays"`
	Memory      int64     `json:"memory,omitempty" jsonschema:"bytes in use"`
	MemoryLimit int64     `json:"memory_limit,omitempty" jsonschema:"bytes"`
	OOMKills    int32     `json:"oom_kills,omitempty" jsonschema:"processes that were killed for want of memory"`
}

type service struct {
	Name     string `json:"name"`
	Phase    string `json:"phase"`
	Message  string `json:"message,omitempty"`
	ExitCode *int32 `json:"exit_code,omitempty"`
	Restarts int32  `json:"restarts,omitempty"`
	Ports    []port `json:"ports,omitempty"`
}

type port struct {
	Name    string `json:"name"`
	Port    int32  `json:"port" jsonschema:"inside"`
	Address string `json:"address" jsonschema:"on the server's machine"`
	URL     string `json:"url,omitempty"`
}

type volume struct {
	Service string `json:"service"`
	Path    string `json:"path" jsonschema:"inside"`
	Size    int64  `json:"size" jsonschema:"bytes"`
	Used    int64  `json:"used" jsonschema:"bytes"`
}

// refOf is what an environment is called.
func refOf(e *islev1.Environment) string {
	return isle.Ref{Name: e.GetName(), Stage: e.GetStage()}.String()
}

// environmentOf shows an environment. What services say is cut.
func environmentOf(e *islev1.Environment) environment {
	v := environment{
		Environment: refOf(e), Project: e.GetProject(), Branch: e.GetBranch(), Phase: e.GetPhase(), Owner: e.GetOwner(), Isolation: e.GetIsolation(),
		Parent: e.GetParentName(), Memory: e.GetUsage().GetMemory(), MemoryLimit: e.GetLimits().GetMemory(), OOMKills: e.GetUsage().GetOomKills(), Services: []service{},
	}
	if t := e.GetCreated(); t != nil {
		v.Created = t.AsTime().Format(time.RFC3339)
	}
	if t := e.GetExpires(); t != nil {
		v.Expires = t.AsTime().Format(time.RFC3339)
	}
	for _, s := range e.GetServices() {
		w := service{Name: s.GetName(), Phase: s.GetPhase(), Message: clip(s.GetMessage(), 2000), ExitCode: s.ExitCode, Restarts: s.GetRestarts()}
		for _, p := range s.GetPorts() {
			w.Ports = append(w.Ports, port{p.GetName(), p.GetNumber(), fmt.Sprintf("127.0.0.1:%d", p.GetHost()), p.GetUrl()})
		}
		v.Services = append(v.Services, w)
	}
	for _, o := range e.GetVolumes() {
		v.Volumes = append(v.Volumes, volume{o.GetService(), o.GetPath(), o.GetSize(), o.GetUsed()})
	}
	return v
}

func (v environment) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s", v.Environment, v.Phase)
	if v.Expires != "" {
		fmt.Fprintf(&b, ", until %s", v.Expires)
	}
	if v.Parent != "" {
		fmt.Fprintf(&b, ", a copy of %s", v.Parent)
	}
	for _, s := range v.Services {
		fmt.Fprintf(&b, "\n  service %s: %s", s.Name, s.Phase)
		if s.Restarts > 0 {
			fmt.Fprintf(&b, ", %d restarts", s.Restarts)
		}
		if s.ExitCode != nil {
			fmt.Fprintf(&b, ", exit code %d", *s.ExitCode)
		}
		if s.Message != "" {
			fmt.Fprintf(&b, ": %s", oneLine(s.Message))
		}
		for _, p := range s.Ports {
			fmt.Fprintf(&b, "\n    port %s (%d inside) at %s", p.Name, p.Port, p.Address)
			if p.URL != "" {
				fmt.Fprintf(&b, ", %s", p.URL)
			}
		}
	}
	for _, o := range v.Volumes {
		fmt.Fprintf(&b, "\n  volume %s of %s: %d of %d bytes used", o.Path, o.Service, o.Used, o.Size)
	}
	return b.String()
}

type upIn struct {
	Path    string  `json:"path,omitempty" jsonschema:"absolute path, on the user's machine, of the project's folder with an isle.yaml, or of such a file; left out, it is the folder that the agent was started in"`
	Name    string  `json:"name,omitempty" jsonschema:"name of the environment; left out, it is the project's, with the git branch unless that is the default one"`
	Stage   string  `json:"stage,omitempty" jsonschema:"left out, it is testing"`
	TTL     string  `json:"ttl,omitempty" jsonschema:"end by itself after this long, for example 8h or 2d, or never; left out, it is what the file says"`
	Locked  bool    `json:"locked,omitempty" jsonschema:"fail if isle.lock would change"`
	NoWait  bool    `json:"no_wait,omitempty" jsonschema:"do not wait until it is healthy"`
	Cold    bool    `json:"cold,omitempty" jsonschema:"start services, where the environment could begin with a ready state"`
	Timeout float64 `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

type upOut struct {
	Environment environment `json:"environment"`
	Changed     bool        `json:"changed" jsonschema:"false: there was nothing to do"`
	Replaced    []string    `json:"replaced" jsonschema:"which services were replaced, and why"`
	LockChanged bool        `json:"lock_changed" jsonschema:"isle.lock was written"`
	Warm        string      `json:"warm,omitempty" jsonschema:"the snapshot of a ready state that it began with, in place of a start"`
	NotWarm     string      `json:"not_warm,omitempty" jsonschema:"why it was started although there was a ready state"`
}

func (v upOut) text() string {
	var b strings.Builder
	for _, r := range v.Replaced {
		fmt.Fprintf(&b, "replaced %s\n", oneLine(r))
	}
	switch {
	case v.Warm != "":
		fmt.Fprintf(&b, "warm start from snapshot %s\n", v.Warm)
	case v.NotWarm != "":
		fmt.Fprintf(&b, "cold start: %s\n", oneLine(v.NotWarm))
	}
	if !v.Changed {
		b.WriteString("nothing to do: ")
	}
	b.WriteString(v.Environment.text())
	return b.String()
}

func (s *Server) up(ctx context.Context, c *call, in upIn) (upOut, error) {
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return upOut{}, err
	}
	defer cancel()
	c.say("reading the project")
	res, err := s.cfg.Projects.Up(ctx, Up{Path: in.Path, Name: in.Name, Stage: in.Stage, TTL: in.TTL, Locked: in.Locked, NoWait: in.NoWait, Cold: in.Cold}, c.event)
	if err != nil {
		return upOut{}, err
	}
	out := upOut{
		Environment: environmentOf(res.GetEnvironment()), Changed: res.GetChanged(), Replaced: []string{}, LockChanged: len(res.GetLock()) > 0,
		Warm: res.GetWarm(), NotWarm: clip(res.GetNotWarm(), 500),
	}
	for _, r := range res.GetReplaced() {
		out.Replaced = append(out.Replaced, clip(r, 500))
	}
	return out, nil
}

// within bounds what a call may take.
func within(ctx context.Context, given float64, usual time.Duration) (context.Context, context.CancelFunc, error) {
	d, err := seconds(given, usual, callMost)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	return ctx, cancel, nil
}

type lsIn struct{}

// listMost bounds lists.
const listMost = 500

type lsOut struct {
	Environments []environment `json:"environments"`
	LeftOut      int           `json:"left_out,omitempty" jsonschema:"how many more there are"`
}

func (v lsOut) text() string {
	if len(v.Environments) == 0 {
		return "there is no environment"
	}
	var lines []string
	for _, e := range v.Environments {
		lines = append(lines, e.text())
	}
	if v.LeftOut > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", v.LeftOut))
	}
	return strings.Join(lines, "\n")
}

func (s *Server) ls(ctx context.Context, _ *call, _ lsIn) (lsOut, error) {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	list, err := s.cfg.Environments.List(ctx)
	if err != nil {
		return lsOut{}, err
	}
	out := lsOut{Environments: []environment{}, LeftOut: max(0, len(list)-listMost)}
	for _, e := range list[:min(len(list), listMost)] {
		out.Environments = append(out.Environments, environmentOf(e))
	}
	return out, nil
}

type statusIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE, as ls has it"`
}

func (s *Server) status(ctx context.Context, _ *call, in statusIn) (environment, error) {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	e, err := s.cfg.Environments.Get(ctx, in.Environment)
	if err != nil {
		return environment{}, err
	}
	return environmentOf(e), nil
}

type logsIn struct {
	Environment string   `json:"environment" jsonschema:"NAME or NAME@STAGE"`
	Services    []string `json:"services,omitempty" jsonschema:"only of these; left out, of all"`
	Tail        int      `json:"tail,omitempty" jsonschema:"the last so many lines, at most 100000; left out, it is 200"`
	MaxOutput   int      `json:"max_output,omitempty" jsonschema:"bytes to show at most; left out, it is 16384"`
}

type logsOut struct {
	Lines   int    `json:"lines"`
	Text    string `json:"text" jsonschema:"a line each: SERVICE | TEXT"`
	LeftOut int64  `json:"left_out,omitempty" jsonschema:"bytes that are left out in the middle"`
	Cursor  string `json:"cursor,omitempty" jsonschema:"for read_output: what is left out begins there"`
}

func (v logsOut) text() string {
	if v.Lines == 0 {
		return "nothing was written"
	}
	return v.Text
}

func (s *Server) logs(ctx context.Context, _ *call, in logsIn) (logsOut, error) {
	show, err := limit(in.MaxOutput)
	if err != nil {
		return logsOut{}, err
	}
	if in.Tail == 0 {
		in.Tail = 200
	}
	if in.Tail < 0 || in.Tail > 100_000 {
		return logsOut{}, isle.Errorf(isle.Invalid, "a tail of %d lines: want 1 to 100000", in.Tail)
	}
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	all := newCapture(1)
	lines := 0
	err = s.cfg.Environments.Logs(ctx, &islev1.LogsRequest{Environment: in.Environment, Services: in.Services, Tail: int32(in.Tail)}, func(l *islev1.LogLine) bool {
		fmt.Fprintf(all, "%s | %s\n", l.GetService(), strings.TrimRight(string(l.GetData()), "\r\n"))
		lines++
		return true
	})
	if err != nil {
		return logsOut{}, err
	}
	v := s.show(all.output(), show)
	return logsOut{lines, v.text, v.left, v.cursor}, nil
}

type doorsIn struct {
	Environment string `json:"environment" jsonschema:"NAME or NAME@STAGE"`
}

type door struct {
	Destination string `json:"destination"`
	Kind        string `json:"kind" jsonschema:"connection (behind the gateway) or egress (a host outside)"`
	Protocol    string `json:"protocol,omitempty"`
	Stage       string `json:"stage,omitempty"`
	State       string `json:"state" jsonschema:"open, refused or held"`
	Reason      string `json:"reason,omitempty"`
	Count       int32  `json:"count" jsonschema:"how often it was tried"`
	Active      int32  `json:"active" jsonschema:"sessions that are open"`
	Last        string `json:"last,omitempty" jsonschema:"when it was tried last"`
}

type doorsOut struct {
	Doors   []door `json:"doors"`
	LeftOut int    `json:"left_out,omitempty" jsonschema:"how many more there are"`
}

func (v doorsOut) text() string {
	if len(v.Doors) == 0 {
		return "it may reach nothing outside, and has not tried"
	}
	var b strings.Builder
	for _, d := range v.Doors {
		fmt.Fprintf(&b, "%s %s %s", d.State, d.Kind, d.Destination)
		if d.Stage != "" {
			fmt.Fprintf(&b, "@%s", d.Stage)
		}
		fmt.Fprintf(&b, ", tried %d times", d.Count)
		if d.Reason != "" {
			fmt.Fprintf(&b, ": %s", oneLine(d.Reason))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (s *Server) doors(ctx context.Context, _ *call, in doorsIn) (doorsOut, error) {
	ctx, cancel := context.WithTimeout(ctx, quickCall)
	defer cancel()
	list, err := s.cfg.Environments.Doors(ctx, in.Environment)
	if err != nil {
		return doorsOut{}, err
	}
	out := doorsOut{Doors: []door{}, LeftOut: max(0, len(list)-listMost)}
	for _, d := range list[:min(len(list), listMost)] {
		v := door{Destination: d.GetDestination(), Kind: d.GetKind(), Protocol: d.GetProtocol(), Stage: d.GetStage(), State: d.GetState(), Reason: clip(d.GetReason(), 500), Count: d.GetCount(), Active: d.GetActive()}
		if t := d.GetLast(); t != nil && !t.AsTime().IsZero() {
			v.Last = t.AsTime().Format(time.RFC3339)
		}
		out.Doors = append(out.Doors, v)
	}
	return out, nil
}

type downIn struct {
	Environments []string `json:"environments" jsonschema:"NAME or NAME@STAGE each"`
	Volumes      bool     `json:"volumes,omitempty" jsonschema:"delete their data too, for good"`
	Timeout      float64  `json:"timeout,omitempty" jsonschema:"seconds after which to give up; left out, it is 1800"`
}

type downOut struct {
	Down []string `json:"down" jsonschema:"what was torn down"`
}

func (v downOut) text() string { return "torn down: " + strings.Join(v.Down, ", ") }

func (s *Server) down(ctx context.Context, c *call, in downIn) (downOut, error) {
	ctx, cancel, err := within(ctx, in.Timeout, upUsual)
	if err != nil {
		return downOut{}, err
	}
	defer cancel()
	if len(in.Environments) == 0 || len(in.Environments) > listMost {
		return downOut{}, isle.Errorf(isle.Invalid, "%d environments: want 1 to %d", len(in.Environments), listMost).WithHint("ls lists them")
	}
	// A call is of one stage.
	stages := map[string][]string{}
	var order []string
	for _, e := range in.Environments {
		ref, err := isle.ParseRef(e)
		if err != nil {
			return downOut{}, err
		}
		if !slices.Contains(order, ref.Stage) {
			order = append(order, ref.Stage)
		}
		stages[ref.Stage] = append(stages[ref.Stage], ref.String())
	}
	out := downOut{Down: []string{}}
	for _, stage := range order {
		if err := s.cfg.Environments.Down(ctx, stages[stage], in.Volumes, c.event); err != nil {
			if len(out.Down) > 0 {
				err = isle.Errorf(isle.CodeOf(err), "%s: torn down; then: %w", strings.Join(out.Down, ", "), err)
			}
			return downOut{}, err
		}
		out.Down = append(out.Down, stages[stage]...)
	}
	return out, nil
}
