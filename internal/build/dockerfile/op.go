package dockerfile

import (
	"os"

	"isle"
)

// An Op makes a layer: a *Run, a *Copy or a *Folder. Every variable in it is
// replaced by its value.
type Op interface {
	// Place is where the instruction stands.
	Place() Place
}

// A Place is where an instruction stands in a Dockerfile.
type Place struct {
	File string
	Line int
	Text string // the instruction, for people: "RUN make"
}

// A Run runs a command.
type Run struct {
	At      Place
	Command []string
	Env     map[string]string
	User    string // as USER has it; "" is root
	Dir     string // absolute
	Script  []byte // the file ScriptPath that the command is; nil: none
	Mounts  []Mount
	// NoNetwork says that it has none, whatever the others have.
	NoNetwork bool
}

// ScriptPath is where a Run's Script is.
const ScriptPath = "/dev/pipes/script"

// A Mount is one of a Run's. Which fields mean something depends on Type.
type Mount struct {
	Type     string // "bind", "cache", "tmpfs", "secret", or "ssh", which gives a step nothing
	Target   string // absolute, or "" of a secret that is a variable alone
	ReadOnly bool
	From     Source // of bind: never scratch
	Path     string // of bind: what is mounted of From, absolute in it
	ID       string // of cache and secret
	Sharing  string // of cache: "shared", "private", "locked"
	Size     int64  // of tmpfs, bytes; 0 is as much as there is
	Mode     os.FileMode
	UID, GID uint32
	Env      string // of secret: the variable that has it; "" none
	Required bool   // of secret
}

// A Copy is COPY or ADD.
type Copy struct {
	At      Place
	From    Source
	Sources []string // patterns, relative to the root of From
	Inline  []Inline // files that the Dockerfile has in itself
	Remote  []Remote // files from elsewhere
	To      string   // absolute; a slash at its end says that it is a folder
	Chown   string   // "" as they are: root's of Context, the image's own of others
	Chmod   string   // octal or symbolic; "" as they are
	Exclude []string // patterns, relative to each source
	Parents bool     // each keeps its folders below To
	Link    bool     // nothing below is looked at
	Unpack  bool     // archives become what is in them
	// UnpackRemote says so of those from elsewhere, and Checksum is what the only
	// one has to have; "": nothing is said.
	UnpackRemote bool
	Checksum     isle.Digest
}

// A Remote is a file that is had over HTTP.
type Remote struct {
	URL  string `json:"url"`
	Name string `json:"name"` // what it is called in a folder
}

// An Inline is a file that a Dockerfile has in itself.
type Inline struct{ Name, Data string }

// A Folder makes a working folder, if it is not there.
type Folder struct {
	At   Place
	Path string
	User string // whose it is
}

// Place implements Op.
func (r *Run) Place() Place { return r.At }

// Place implements Op.
func (c *Copy) Place() Place { return c.At }

// Place implements Op.
func (f *Folder) Place() Place { return f.At }
