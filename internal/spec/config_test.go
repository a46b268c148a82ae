package spec

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestWhatChangesAServiceReplacesItAndSaysWhy(t *testing.T) {
	b, err := os.ReadFile("testdata/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	parse := func() (File, *Service) {
		f, err := Parse("isle.yaml", b)
		if err != nil {
			t.Fatal(err)
		}
		f.Services[1].Volumes = []Volume{{"/b", 1 << 30}, {"/a", 1 << 30}}
		f.Services[1].Ports = []Port{{"web", 8080}, {"admin", 81}}
		return f, &f.Services[1]
	}
	old, was := parse()
	for _, c := range []struct {
		want     string
		replaces bool
		change   func(*File, *Service)
	}{
		{"", false, func(f *File, s *Service) { slices.Reverse(s.Volumes); slices.Reverse(s.Ports) }},
		{"", false, func(f *File, s *Service) { f.TTL, f.Egress, f.Uses = time.Hour, nil, []string{"orders-db"} }},
		{"command changed", true, func(f *File, s *Service) { s.Command = []string{"x"} }},
		{"env LOG_LEVEL added", true, func(f *File, s *Service) { s.Env["LOG_LEVEL"] = "debug" }},
		{"env DATABASE_URL changed", true, func(f *File, s *Service) { s.Env["DATABASE_URL"] = "x" }},
		{"env DATABASE_URL removed", true, func(f *File, s *Service) { delete(s.Env, "DATABASE_URL") }},
		{"user changed", true, func(f *File, s *Service) { s.User = "nobody" }},
		{"workdir changed", true, func(f *File, s *Service) { s.Workdir = "/" }},
		{"volume /a changed", true, func(f *File, s *Service) { s.Volumes[1].Size++ }},
		{"volume /b removed", true, func(f *File, s *Service) { s.Volumes = s.Volumes[1:] }},
		{"tmpfs /w added", true, func(f *File, s *Service) { s.Tmpfs = []string{"/w"} }},
		{"on_fork changed", true, func(f *File, s *Service) { s.OnFork = []string{"x"} }},
		{"setup changed", true, func(f *File, s *Service) { s.Setup = []string{"x"} }},
		{"capability CAP_CHOWN added", true, func(f *File, s *Service) { s.Caps = []string{"CAP_CHOWN"} }},
		{"healthcheck changed", true, func(f *File, s *Service) { s.Healthcheck.Retries++ }},
		{"healthcheck changed", true, func(f *File, s *Service) { s.Healthcheck = nil }},
		{"restart changed", true, func(f *File, s *Service) { s.Restart = "always" }},
		{"port web changed", true, func(f *File, s *Service) { s.Ports[0].Number = 8081 }},
		{"package curl added", false, func(f *File, s *Service) { s.Packages = append(s.Packages, "curl") }},
		{"run changed", false, func(f *File, s *Service) { s.Run = nil }},
		{"copy changed", false, func(f *File, s *Service) { s.Copy[0].To = "/x" }},
		{"depends_on changed", false, func(f *File, s *Service) { s.DependsOn = nil }},
		{"limit of memory changed", true, func(f *File, s *Service) { f.Limits.Memory++ }},
	} {
		f, s := parse()
		c.change(&f, s)
		if got := ExplainIn(old, f, "web"); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
		if replaces := ConfigDigest(*s, f) != ConfigDigest(*was, old); replaces != c.replaces {
			t.Errorf("%q: replaces %v, want %v", c.want, replaces, c.replaces)
		}
	}
	if ExplainIn(old, File{}, "web") != "service removed" || ExplainIn(File{}, old, "web") != "service added" {
		t.Error("a service that comes or goes is not told")
	}
}
