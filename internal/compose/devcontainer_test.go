package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"isle"
)

func devcontainer(s *Source) { s.Name = ".devcontainer/devcontainer.json" }

func TestADevcontainerIsAServiceWithTheProjectInIt(t *testing.T) {
	c := good(t, map[string]string{
		".devcontainer/devcontainer.json": `// as editors write it
{
	"name": "The Shop", /* a
	comment */
	"build": { "dockerfile": "Dockerfile", "context": "..", "args": {"V": "1",}, },
	"containerEnv": { "HOME_OF": "${localEnv:NOBODY:some//body}", "AT": "${containerWorkspaceFolder}/x" },
	"forwardPorts": [3000, "db:5432"],
	"postCreateCommand": "make deps # and so on",
	"onCreateCommand": ["echo", "it's"],
	"postStartCommand": { "a": "true" },
	"mounts": ["source=cache,target=/cache,type=volume", {"type": "bind", "source": "${localWorkspaceFolder}/conf", "target": "/etc/conf"}],
	"remoteUser": "dev",
	"customizations": { "vscode": { "extensions": ["x"] } },
	"shutdownAction": "none",
}
`, ".devcontainer/Dockerfile": "FROM x\n", "conf/a": "",
	}, devcontainer)
	s, ok := c.File.Service("dev")
	if !ok || c.File.Name != "the-shop" || s.User != "dev" || s.Build == nil || s.Build.Context != "." || s.Build.Dockerfile != ".devcontainer/Dockerfile" || s.Build.Args["V"] != "1" {
		t.Fatalf("it is %+v, %+v", s, s.Build)
	}
	if s.Env["HOME_OF"] != "some//body" || s.Env["AT"] != "/workspaces/shop/x" || s.Workdir != "/workspaces/shop" || len(s.Ports) != 1 || s.Ports[0].Number != 3000 || len(s.Volumes) != 2 {
		t.Errorf("it is %+v", s)
	}
	if len(s.Copy) != 2 || s.Copy[0].From != "conf/" || s.Copy[1].From != "." || s.Copy[1].To != original {
		t.Errorf("it copies %+v", s.Copy)
	}
	want := "cp -R /opt/workspace/. '/workspaces/shop'/ && cd '/workspaces/shop' && 'echo' 'it'\\''s' && { make deps # and so on\n}"
	if len(s.Setup) != 3 || s.Setup[2] != want || !strings.HasPrefix(s.Command[2], "{ true\n}; while") {
		t.Errorf("setup is %q, and command %q", s.Setup, s.Command)
	}
	wantNote(t, c, Dropped, 13, "customizations", "editor")
}

func TestADevcontainerGoesIntoAComposeFilesService(t *testing.T) {
	c := good(t, map[string]string{
		".devcontainer/devcontainer.json": `{"dockerComposeFile": ["../compose.yaml"], "service": "app", "runServices": ["app"], "workspaceFolder": "/code/app", "containerEnv": {"A": "2"}, "postCreateCommand": "make"}`,
		"compose.yaml":                    "services:\n  app: {image: a, volumes: ['.:/code'], depends_on: [db], environment: {A: 1, B: 1}}\n  db: {image: b}\n  other: {image: c}\n",
	}, devcontainer)
	app, _ := c.File.Service("app")
	if len(c.File.Services) != 2 || app.Env["A"] != "2" || app.Env["B"] != "1" || app.Workdir != "/code/app" || len(app.Volumes) != 1 || app.Volumes[0].Path != "/code" || len(app.Setup) != 3 || len(app.Command) != 0 {
		t.Errorf("it is %+v", c.File)
	}
}

func TestWhatADevcontainerHasNoEquivalentForIsNamed(t *testing.T) {
	text, lines := "{\n  \"image\": \"a\"", map[string]int{}
	for key := range containerOthers() {
		text += ",\n  \"" + key + "\": \"x\""
		lines[key] = strings.Count(text, "\n") + 1
	}
	c, err := convert(t, map[string]string{".devcontainer.json": text + "\n}"}, func(s *Source) { s.Name = ".devcontainer.json" })
	if err != nil {
		t.Fatal(err)
	}
	for key, rule := range containerOthers() {
		wantNote(t, c, rule.kind, lines[key], key, ".devcontainer.json:")
	}
	for _, text := range []string{"{", "{\"a\": 'x'}", "{\"image\": \"a\" \"b\": 1}", "[]", "/*", "{\"image\": \"a", "x: y"} {
		if _, err := convert(t, map[string]string{".devcontainer/devcontainer.json": text}, devcontainer); isle.CodeOf(err) != isle.Invalid {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestFindTakesComposeFilesBeforeADevcontainer(t *testing.T) {
	dir := t.TempDir()
	for _, step := range []struct{ add, want, over string }{
		{".devcontainer/devcontainer.json", ".devcontainer/devcontainer.json", ""}, {"docker-compose.yml", "docker-compose.yml", ""},
		{"docker-compose.override.yml", "docker-compose.yml", "docker-compose.override.yml"}, {"compose.yaml", "compose.yaml", ""},
	} {
		path := filepath.Join(dir, step.add)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		name, over := Find(dir)
		if name != step.want || strings.Join(over, "") != step.over || !IsName(name) {
			t.Errorf("with %s it finds %s and %q", step.add, name, over)
		}
	}
	if dir, name := Folder("a/.devcontainer/devcontainer.json"); dir != "a" || name != ".devcontainer/devcontainer.json" {
		t.Errorf("it is %s in %s", name, dir)
	}
	if dir, name := Folder("compose.yaml"); dir != "." || name != "compose.yaml" {
		t.Errorf("it is %s in %s", name, dir)
	}
}

// FuzzDevcontainers reads whatever may be sent to somebody.
func FuzzDevcontainers(f *testing.F) {
	f.Add("{\"image\": \"a\", // x\n \"forwardPorts\": [1, \"a:2\"], /* */ \"mounts\": [\"type=bind,source=.,target=/x\"], \"postCreateCommand\": {\"a\": [\"b\"]},}")
	f.Add("{\"dockerComposeFile\": \"x.yaml\", \"service\": \"a\", \"runServices\": [\"a\"], \"workspaceFolder\": \"/w\"}")
	f.Add("{\"build\": {\"dockerfile\": \"D\", \"context\": \"..\"}, \"remoteUser\": [], \"containerEnv\": \"${localEnv:A:${b}\"}")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		for name, content := range map[string]string{"devcontainer.json": text, "x.yaml": "services: {a: {image: b, depends_on: [c]}, c: {image: d, depends_on: [a]}}"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := Convert(Source{Dir: dir, Name: "devcontainer.json"})
		if err != nil && strings.Contains(err.Error(), "runtime error") {
			t.Fatal(err)
		}
		if err == nil && c.Err() == nil {
			if err := c.File.Check(); err != nil {
				t.Fatalf("%v\n%s", err, c.YAML)
			}
		}
	})
}
