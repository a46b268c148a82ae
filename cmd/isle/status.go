package main

import (
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	islev1 "isle/internal/api/isle/v1"
)

func newStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status ENV",
		Short: "Show one environment: services, images, ports, volumes, usage",
		Args:  args(1, 1, "one environment"),
		RunE: func(cmd *cobra.Command, given []string) error {
			ref, err := reference(given[0])
			if err != nil {
				return err
			}
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			res, err := c.Environments.Get(cmd.Context(), connect.NewRequest(&islev1.GetRequest{Environment: ref.String()}))
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(environmentView(res.Msg.GetEnvironment()))
			}
			return a.status(res.Msg.GetEnvironment())
		},
	}
}

// status prints one environment for people.
func (a *app) status(e *islev1.Environment) error {
	w := a.stdout
	fmt.Fprintf(w, "%s is %s\n", refText(e), e.GetPhase())
	fmt.Fprintf(w, "  project   %s", e.GetProject())
	if e.GetBranch() != "" {
		fmt.Fprintf(w, ", branch %s", cleanLine(e.GetBranch()))
	}
	if c := commitText(e); c != "" {
		fmt.Fprintf(w, ", commit %s", clean(c))
	}
	fmt.Fprintf(w, "\n  instance  %s\n  owner     %s\n", e.GetInstance(), e.GetOwner())
	if e.GetRelease() != "" {
		fmt.Fprintf(w, "  release   %s\n", shortDigest(e.GetRelease()))
	}
	for _, x := range e.GetAsides() {
		what := "what was launched of a file"
		if x.GetRelease() != "" {
			what = "release " + shortDigest(x.GetRelease())
		}
		fmt.Fprintf(w, "  before    %s, kept frozen until %s\n", what, x.GetUntil().AsTime().Local().Format(time.DateTime))
	}
	if e.GetWatched() != "" {
		fmt.Fprintf(w, "  watched   %s\n", cleanLine(e.GetWatched()))
	}
	if e.GetBreach() != "" {
		fmt.Fprintf(w, "  ! breach  %s\n", cleanLine(e.GetBreach()))
	}
	if e.GetParent() != "" {
		what := "copy of   "
		if e.GetWarm() {
			what = "warm from "
		}
		fmt.Fprintf(w, "  %s%s", what, e.GetParentName())
		if e.GetOrigin() != "" {
			fmt.Fprintf(w, ", snapshot %s", shortDigest(e.GetOrigin()))
		}
		fmt.Fprintln(w)
	}
	if e.GetKept() != "" {
		fmt.Fprintf(w, "  ready     %s\n", cleanLine(e.GetKept()))
	}
	for _, d := range e.GetDrift() {
		fmt.Fprintf(w, "  drift     %s\n", cleanLine(d))
	}
	switch {
	case e.GetTrouble() != "":
		fmt.Fprintf(w, "  shut      %s\n", cleanLine(e.GetTrouble()))
	case e.GetOpening() == "shut":
		fmt.Fprintln(w, "  shut      until on_fork has succeeded in every service")
	case e.GetOpening() != "":
		fmt.Fprintf(w, "  shut      %s\n", clean(e.GetOpening()))
	}
	if t := e.GetCreated(); t != nil {
		fmt.Fprintf(w, "  created   %s (%s ago)\n", t.AsTime().Local().Format(time.DateTime), age(e))
	}
	if t := e.GetExpires(); t != nil {
		fmt.Fprintf(w, "  ends      %s (in %s)\n", t.AsTime().Local().Format(time.DateTime), left(e))
	}
	if u, l := e.GetUsage(), e.GetLimits(); u != nil && l != nil {
		fmt.Fprintf(w, "  memory    %s of %s\n", bytesText(u.GetMemory()), bytesText(l.GetMemory()))
		fmt.Fprintf(w, "  pids      %d of %d\n", u.GetPids(), l.GetPids())
		fmt.Fprintf(w, "  cpu       %.1fs used, %g at most\n", u.GetCpu().AsDuration().Seconds(), l.GetCpus())
		if u.GetOomKills() > 0 {
			fmt.Fprintf(w, "  out of memory %d times\n", u.GetOomKills())
		}
	}
	fmt.Fprintln(w)
	return a.statusTables(e)
}

// statusTables prints an environment's services, ports and what else it has.
func (a *app) statusTables(e *islev1.Environment) error {
	w := a.stdout
	var rows [][]string
	for _, s := range e.GetServices() {
		message := s.GetMessage()
		if s.ExitCode != nil && message == "" {
			message = fmt.Sprintf("exit code %d", s.GetExitCode())
		}
		rows = append(rows, []string{s.GetName(), s.GetPhase(), shortDigest(s.GetDigest()), strconv.Itoa(int(s.GetRestarts())), message})
	}
	if err := table(w, "service\tphase\timage\trestarts\tmessage", rows); err != nil {
		return err
	}
	rows = nil
	for _, s := range e.GetServices() {
		for _, p := range s.GetPorts() {
			rows = append(rows, []string{s.GetName(), p.GetName(), strconv.Itoa(int(p.GetNumber())), fmt.Sprintf("127.0.0.1:%d", p.GetHost()), p.GetUrl()})
		}
	}
	if rows != nil {
		fmt.Fprintln(w)
		if err := table(w, "service\tport\tinside\taddress\turl", rows); err != nil {
			return err
		}
	}
	rows = nil
	for _, s := range e.GetServices() {
		if s.GetWritable() > 0 {
			rows = append(rows, []string{s.GetName(), bytesText(s.GetWritable()) + " in memory, until it ends"})
		}
	}
	if rows != nil {
		fmt.Fprintln(w)
		if err := table(w, "service\twritable root", rows); err != nil {
			return err
		}
	}
	rows = nil
	for _, v := range e.GetVolumes() {
		rows = append(rows, []string{v.GetService(), v.GetPath(), bytesText(v.GetUsed()) + " of " + bytesText(v.GetSize())})
	}
	if rows != nil {
		fmt.Fprintln(w)
		return table(w, "service\tvolume\tused", rows)
	}
	return nil
}
