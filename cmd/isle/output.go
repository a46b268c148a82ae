package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	islev1 "isle/internal/api/isle/v1"
)

// What follows is the shape of -o json: lists are arrays and never null, names
// are in snake_case, times are RFC 3339, sizes bytes, durations seconds.

type environmentJSON struct {
	Name      string        `json:"name"`
	Stage     string        `json:"stage"`
	Instance  string        `json:"instance"`
	Project   string        `json:"project"`
	Branch    string        `json:"branch,omitempty"`
	Commit    string        `json:"commit,omitempty"`
	Dirty     bool          `json:"dirty"`
	Release   string        `json:"release,omitempty"`
	Owner     string        `json:"owner"`
	Phase     string        `json:"phase"`
	Isolation string        `json:"isolation"`
	Created   *time.Time    `json:"created,omitempty"`
	Expires   *time.Time    `json:"expires,omitempty"`
	Limits    *limitsJSON   `json:"limits,omitempty"`
	Usage     *usageJSON    `json:"usage,omitempty"`
	Services  []serviceJSON `json:"services"`
	Volumes   []volumeJSON  `json:"volumes,omitempty"`
	// Of copies.
	Parent     string   `json:"parent,omitempty"`
	ParentName string   `json:"parent_name,omitempty"`
	Origin     string   `json:"origin,omitempty"`
	Generation int64    `json:"generation,omitempty"`
	Opening    string   `json:"opening,omitempty"`
	Trouble    string   `json:"trouble,omitempty"`
	Warm       bool     `json:"warm,omitempty"`  // it began with the ready state in origin
	Drift      []string `json:"drift,omitempty"` // what is not as released
	Kept       string   `json:"kept,omitempty"`  // what became of keeping its own
	// Of releases.
	Asides  []asideJSON `json:"asides,omitempty"`  // what served before and is kept frozen
	Watched string      `json:"watched,omitempty"` // what its stage is watched for
	Breach  string      `json:"breach,omitempty"`  // why it should have been rolled back, and was not
}

type asideJSON struct {
	Instance string     `json:"instance"`
	Release  string     `json:"release,omitempty"`
	Since    *time.Time `json:"since"`
	Until    *time.Time `json:"until"`
}

type limitsJSON struct {
	CPUs   float64 `json:"cpus"`
	Memory int64   `json:"memory"`
	PIDs   int32   `json:"pids"`
}

type usageJSON struct {
	Memory   int64   `json:"memory"`
	PIDs     int32   `json:"pids"`
	CPU      float64 `json:"cpu"`
	OOMKills int32   `json:"oom_kills"`
}

type serviceJSON struct {
	Name     string     `json:"name"`
	Launch   string     `json:"launch"`
	Digest   string     `json:"digest"`
	Phase    string     `json:"phase"`
	Restarts int32      `json:"restarts"`
	ExitCode *int32     `json:"exit_code,omitempty"`
	Message  string     `json:"message,omitempty"`
	Started  *time.Time `json:"started,omitempty"`
	Writable int64      `json:"writable,omitempty"` // bytes that it may write to its root
	Ports    []portJSON `json:"ports"`
}

type portJSON struct {
	Name   string `json:"name"`
	Number int32  `json:"number"`
	Host   int32  `json:"host"`
	URL    string `json:"url,omitempty"`
}

type volumeJSON struct {
	ID          string     `json:"id"`
	Service     string     `json:"service"`
	Path        string     `json:"path"`
	Size        int64      `json:"size"`
	Used        int64      `json:"used"`
	DeleteAfter *time.Time `json:"delete_after,omitempty"`
}

func at(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	v := t.AsTime()
	return &v
}

func environmentView(e *islev1.Environment) environmentJSON {
	v := environmentJSON{
		Name: e.GetName(), Stage: e.GetStage(), Instance: e.GetInstance(), Project: e.GetProject(), Branch: e.GetBranch(),
		Commit: e.GetCommit(), Dirty: e.GetDirty(), Release: e.GetRelease(),
		Owner: e.GetOwner(), Phase: e.GetPhase(), Isolation: e.GetIsolation(), Created: at(e.GetCreated()), Expires: at(e.GetExpires()),
		Services: []serviceJSON{}, Parent: e.GetParent(), ParentName: e.GetParentName(), Origin: e.GetOrigin(), Generation: e.GetGeneration(),
		Opening: e.GetOpening(), Trouble: e.GetTrouble(), Warm: e.GetWarm(), Kept: e.GetKept(), Drift: e.GetDrift(), Watched: e.GetWatched(), Breach: e.GetBreach(),
	}
	for _, x := range e.GetAsides() {
		v.Asides = append(v.Asides, asideJSON{x.GetInstance(), x.GetRelease(), at(x.GetSince()), at(x.GetUntil())})
	}
	if l := e.GetLimits(); l != nil {
		v.Limits = &limitsJSON{l.GetCpus(), l.GetMemory(), l.GetPids()}
	}
	if u := e.GetUsage(); u != nil {
		v.Usage = &usageJSON{u.GetMemory(), u.GetPids(), u.GetCpu().AsDuration().Seconds(), u.GetOomKills()}
	}
	for _, s := range e.GetServices() {
		sv := serviceJSON{
			Name: s.GetName(), Launch: s.GetLaunch(), Digest: s.GetDigest(), Phase: s.GetPhase(), Restarts: s.GetRestarts(), Writable: s.GetWritable(),
			ExitCode: s.ExitCode, Message: s.GetMessage(), Started: at(s.GetStarted()), Ports: []portJSON{},
		}
		for _, p := range s.GetPorts() {
			sv.Ports = append(sv.Ports, portJSON{p.GetName(), p.GetNumber(), p.GetHost(), p.GetUrl()})
		}
		v.Services = append(v.Services, sv)
	}
	for _, o := range e.GetVolumes() {
		v.Volumes = append(v.Volumes, volumeJSON{o.GetId(), o.GetService(), o.GetPath(), o.GetSize(), o.GetUsed(), at(o.GetDeleteAfter())})
	}
	return v
}

// json writes v as -o json has it: indented, for people too.
func (a *app) json(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// showList shows what there is of something: with -o json the view of each, else
// a row for each in a table under a heading.
func showList[T, V any](a *app, items []T, view func(T) V, heading string, row func(T) []string) error {
	if a.output == "json" {
		out := make([]V, len(items))
		for i, item := range items {
			out[i] = view(item)
		}
		return a.json(out)
	}
	rows := make([][]string, len(items))
	for i, item := range items {
		rows[i] = row(item)
	}
	return table(a.stdout, heading, rows)
}

// table writes rows in columns under a heading.
func table(w io.Writer, heading string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, strings.ToUpper(heading))
	for _, r := range rows {
		for i := range r {
			r[i] = cleanCell(r[i])
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// bytesText is a size for people, in powers of 1024.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %ciB", f, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[i])
}

// span is a duration for people, in one or two units: "3s", "5m", "2h30m",
// "4d".
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return "0s"
	case d < time.Minute:
		return d.Truncate(time.Second).String()
	}
	m := int(d.Round(time.Minute).Minutes())
	switch {
	case m < 60:
		return fmt.Sprintf("%dm", m)
	case m < 24*60 && m%60 != 0:
		return fmt.Sprintf("%dh%dm", m/60, m%60)
	case m < 48*60:
		return fmt.Sprintf("%dh", m/60)
	default:
		return fmt.Sprintf("%dd", m/60/24)
	}
}

// refText is NAME, or NAME@STAGE where the stage is not the default.
func refText(e *islev1.Environment) string {
	return environmentRef(e).String()
}

// commitText is the commit that an environment was brought up from, as git
// shortens it, and whether its files were others.
func commitText(e *islev1.Environment) string {
	short := e.GetCommit()[:min(10, len(e.GetCommit()))]
	if e.GetDirty() {
		return strings.TrimSpace(short + " dirty")
	}
	return short
}

// shortDigest is the first twelve hexadecimal characters of a digest.
func shortDigest(d string) string {
	_, h, ok := strings.Cut(d, ":")
	if !ok {
		h = d
	}
	return h[:min(12, len(h))]
}
