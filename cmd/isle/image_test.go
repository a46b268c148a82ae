package main

import (
	"strings"
	"testing"

	islev1 "isle/internal/api/isle/v1"
)

// What an image says of itself was written by whoever made it.
func TestWhatAnImageSaysOfItselfIsOneLineEach(t *testing.T) {
	forged := "a\n  digest sha256:forged\r\x1b[2J"
	m := &islev1.Image{
		Name: forged, From: forged, LeftOut: []string{forged}, Layers: []*islev1.Layer{{Kind: forged, Title: forged}},
		Config: &islev1.ImageConfig{User: forged, Env: []string{forged}, Entrypoint: []string{forged}, Cmd: []string{forged}, Workdir: forged, Volumes: []string{forged}, Ports: []string{forged}},
	}
	var out strings.Builder
	a := &app{stdout: &out, stderr: &out, output: "text"}
	if err := a.imageMade(m); err != nil {
		t.Fatal(err)
	}
	if err := a.showImage(namedImageView(m)); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\n  digest sha256:forged") {
		t.Errorf("it is shown as\n%s", out.String())
	}
}
