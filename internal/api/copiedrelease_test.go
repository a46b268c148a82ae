package api

import (
	"maps"
	"slices"
	"testing"

	"isle"
	"isle/internal/environment"
	"isle/internal/image"
	"isle/internal/release"
	"isle/internal/spec"
)

// A pointed has one release, at which one stage points.
type pointed struct {
	Releases
	release release.Release
	stage   string
	values  release.Values
}

func (p pointed) Use(name string) (release.Release, error) {
	if name != string(p.release.Digest) {
		return release.Release{}, isle.Errorf(isle.NotFound, "there is no release %s", name)
	}
	return p.release, nil
}

func (p pointed) At(_ release.Release, stage string, must bool) (release.Values, error) {
	if stage != p.stage || !must {
		return release.Values{}, isle.Errorf(isle.Conflict, "nothing was promoted to stage %s", stage)
	}
	return p.values, nil
}

func TestACopyIsOfAReleaseWhereItIsAllThatTheStagePointsAt(t *testing.T) {
	file, err := spec.Parse("isle.yaml", []byte("name: shop\nservices: {web: {command: [a], env: {LEVEL: low}}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	layer := image.Image{Format: image.FormatVersion, Architecture: "amd64", Layers: []image.Layer{{Digest: isle.DigestOf([]byte("layer")), Size: 1, Kind: "copy"}}}
	m, err := release.New(file, map[string]image.Image{"web": layer})
	if err != nil {
		t.Fatal(err)
	}
	values := release.Values{Env: map[string]map[string]string{"web": {"LEVEL": "high"}}}
	launched, err := values.Apply(file)
	if err != nil {
		t.Fatal(err)
	}
	d := isle.DigestOf([]byte("release"))
	cfg := Config{Releases: pointed{release: release.Release{Digest: d, Manifest: m}, stage: "production", values: values}}
	plan := environment.ForkPlan{
		Source: isle.Ref{Name: "shop", Stage: "production"}, Project: "shop", Release: d, Spec: launched, Images: map[string]isle.Digest{"web": layer.Digest()},
	}
	if !cfg.isReleased(plan, "production") {
		t.Error("it is none")
	}
	for name, change := range map[string]func(p *environment.ForkPlan, stage *string){
		"no release":      func(p *environment.ForkPlan, _ *string) { p.Release = "" },
		"an unknown one":  func(p *environment.ForkPlan, _ *string) { p.Release = isle.DigestOf([]byte("other")) },
		"from elsewhere":  func(p *environment.ForkPlan, _ *string) { p.Source.Stage = "staging" },
		"another stage":   func(p *environment.ForkPlan, stage *string) { p.Source.Stage, *stage = "staging", "staging" },
		"other values":    func(p *environment.ForkPlan, _ *string) { p.Spec = file },
		"another image":   func(p *environment.ForkPlan, _ *string) { p.Images["web"] = isle.DigestOf([]byte("other")) },
		"another project": func(p *environment.ForkPlan, _ *string) { p.Project = "other" },
		"a service besides": func(p *environment.ForkPlan, _ *string) {
			p.Spec.Services = append(slices.Clone(p.Spec.Services), p.Spec.Services[0])
		},
	} {
		p, stage := plan, "production"
		p.Images = maps.Clone(plan.Images)
		change(&p, &stage)
		if cfg.isReleased(p, stage) {
			t.Errorf("%s: it is one", name)
		}
	}
}
