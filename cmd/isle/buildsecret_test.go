package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"isle"
	"isle/internal/compose"
)

func TestSecretsAreGivenAsBuildKitsClientsTakeThem(t *testing.T) {
	t.Setenv("NPM_TOKEN", "of the environment")
	for flag, want := range map[string]givenSecret{
		"id=a,src=b":           {id: "a", src: "b"},
		"source=b,id=a":        {id: "a", src: "b"},
		"type=file,id=a,src=b": {id: "a", src: "b"},
		"id=a,env=B":           {id: "a", env: "B"},
		"type=env,id=a,src=B":  {id: "a", env: "B"},
		"id=NPM_TOKEN":         {id: "NPM_TOKEN", env: "NPM_TOKEN"},
		"id=a":                 {id: "a", src: "a"},
	} {
		if got, err := parseSecrets([]string{flag}); err != nil || !slices.Equal(got, []givenSecret{want}) {
			t.Errorf("%s: %+v, %v", flag, got, err)
		}
	}
	for _, flags := range [][]string{{"a"}, {"src=b"}, {"id=a,src=b,env=C"}, {"id=a,type=other"}, {"id=a,src=b", "id=a,src=c"}, {""}} {
		if got, err := parseSecrets(flags); err == nil {
			t.Errorf("%q: %+v", flags, got)
		}
	}
}

func TestWhatTheCommandLineGivesComesBeforeWhatAFileDoes(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(name, []byte("of the line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &project{secrets: []givenSecret{{id: "a", src: name}}, ofFile: []compose.BuildSecret{{Service: "web", ID: "a", Value: []byte("of the file")}, {Service: "web", ID: "b", Value: []byte("b")}}}
	got, err := p.secretValues()
	if err != nil || len(got) != 2 || got[0].GetId() != "b" || got[0].GetService() != "web" || string(got[1].GetValue()) != "of the line\n" || got[1].GetService() != "" {
		t.Errorf("%v, %v", got, err)
	}
	p.secrets = []givenSecret{{id: "a", src: filepath.Dir(name) + "/none"}}
	if _, err := p.secretValues(); isle.CodeOf(err) != isle.NotFound {
		t.Errorf("%v", err)
	}
}
