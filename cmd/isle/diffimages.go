package main

import (
	"fmt"

	islev1 "isle/internal/api/isle/v1"
)

type imagesJSON struct {
	Layers []layerChangeJSON `json:"layers"`
	Files  []imageFileJSON   `json:"files"`
	More   bool              `json:"more"`
	Unread []string          `json:"unread"` // services of whose images layers are not there any more
}

type layerChangeJSON struct {
	Service string `json:"service"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Of      string `json:"of"`
	Kind    string `json:"kind"` // added or deleted
}

type imageFileJSON struct {
	Service string `json:"service"`
	Path    string `json:"path"`
	Kind    string `json:"kind"`
	Size    int64  `json:"size"`
}

// imagesView is what differs between images; nil where they were not compared.
func imagesView(d *islev1.ImageDifference) *imagesJSON {
	if d == nil {
		return nil
	}
	out := &imagesJSON{Layers: []layerChangeJSON{}, Files: []imageFileJSON{}, More: d.GetMore(), Unread: append([]string{}, d.GetUnread()...)}
	for _, l := range d.GetLayers() {
		kind := "deleted"
		if l.GetAdded() {
			kind = "added"
		}
		out.Layers = append(out.Layers, layerChangeJSON{l.GetService(), l.GetDigest(), l.GetSize(), l.GetKind(), kind})
	}
	for _, f := range d.GetFiles() {
		out.Files = append(out.Files, imageFileJSON{f.GetService(), f.GetPath(), f.GetKind(), f.GetSize()})
	}
	return out
}

// showImages writes a line for each layer and file, each behind indent.
func (a *app) showImages(d *islev1.ImageDifference, indent string) {
	marks := map[string]string{"added": "A", "modified": "M", "deleted": "D"}
	for _, l := range d.GetLayers() {
		mark := "D"
		if l.GetAdded() {
			mark = "A"
		}
		fmt.Fprintf(a.stdout, "%s%s %s layer %s of %s, %s\n", indent, mark, cleanLine(l.GetService()), shortDigest(l.GetDigest()), cleanLine(l.GetKind()), bytesText(l.GetSize()))
	}
	for _, f := range d.GetFiles() {
		fmt.Fprintf(a.stdout, "%s%s %s:%s\n", indent, marks[f.GetKind()], cleanLine(f.GetService()), cleanLine(f.GetPath()))
	}
	if d.GetMore() {
		fmt.Fprintf(a.stdout, "%sthere are more files\n", indent)
	}
	for _, s := range d.GetUnread() {
		fmt.Fprintf(a.stdout, "%s! layers of service %s are not here any more: its files were not compared\n", indent, cleanLine(s))
	}
}
