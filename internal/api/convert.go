package api

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"isle"
	islev1 "isle/internal/api/isle/v1"
	"isle/internal/environment"
	"isle/internal/image"
)

// timestamp is nil for no time at all.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func environmentMessage(e environment.Environment) *islev1.Environment {
	m := &islev1.Environment{
		Instance: string(e.Instance), Name: e.Ref.Name, Stage: e.Ref.Stage, Project: e.Project, Owner: ownerText(e.Owner),
		Phase: string(e.Phase), Created: timestamp(e.Created), Expires: timestamp(e.Expires), Branch: e.Branch, Commit: e.Commit, Dirty: e.Dirty, Repository: e.Repository, Release: string(e.Release), Isolation: e.Spec.Isolation,
		Limits: &islev1.Limits{Cpus: e.Spec.Limits.CPUs, Memory: e.Spec.Limits.Memory, Pids: int32(e.Spec.Limits.PIDs)},
	}
	if e.Parent != "" {
		m.Parent, m.ParentName, m.Origin = string(e.Parent), e.ParentRef.String(), string(e.Origin)
	}
	m.Generation, m.Opening, m.Trouble = e.Generation, string(e.Opening), e.Trouble
	m.Warm, m.Kept = e.Warm, e.Kept
	// In the order of the file: the first one is what exec means.
	place := map[string]int{}
	for i, s := range e.Spec.Services {
		place[s.Name] = i
	}
	m.Services = make([]*islev1.Service, 0, len(e.Services))
	for _, s := range e.Services {
		sm := serviceMessage(s)
		if svc, ok := e.Spec.Service(s.Name); ok {
			sm.Writable = svc.Writable
		}
		m.Services = append(m.Services, sm)
	}
	slices.SortStableFunc(m.Services, func(a, b *islev1.Service) int { return cmp.Compare(place[a.Name], place[b.Name]) })
	return m
}

func serviceMessage(s environment.Service) *islev1.Service {
	m := &islev1.Service{
		Name: s.Name, Launch: string(s.Launch), Digest: string(s.Digest), Phase: string(s.Phase), Restarts: int32(s.Restarts),
		Message: s.Message, Started: timestamp(s.Started),
	}
	if s.ExitCode != nil {
		code := int32(*s.ExitCode)
		m.ExitCode = &code
	}
	for _, p := range s.Ports {
		m.Ports = append(m.Ports, &islev1.Port{Name: p.Name, Number: int32(p.Number), Host: int32(p.Host), Url: p.URL})
	}
	return m
}

func progressMessage(p environment.Progress) *islev1.ProgressEvent {
	return &islev1.ProgressEvent{Service: p.Service, Step: p.Step, State: p.State, Message: p.Message, Done: p.Done, Total: p.Total}
}

func imageMessage(service string, m image.Image) *islev1.BuiltImage {
	b := &islev1.BuiltImage{Service: service, Digest: string(m.Digest()), Size: m.Size()}
	for _, l := range m.Layers {
		b.Layers = append(b.Layers, &islev1.Layer{Digest: string(l.Digest), Size: l.Size, Kind: l.Kind, Title: l.Title})
	}
	return b
}

// ownerText is the name of a person, and machine:NAME of a machine, which may
// have a person's name.
func ownerText(a isle.Actor) string {
	if a.Kind == isle.Human {
		return a.Name
	}
	return a.String()
}
