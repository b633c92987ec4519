// Package house holds no code: its test keeps the rule by which the rooms of this repository depend on each other.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/miniswarm/miniswarm/"

// mayImport says which rooms a room may use, besides itself and its own sub-rooms. A room is named by the longest
// prefix listed here. An import goes down, never up and never sideways into another shell.
var mayImport = map[string][]string{
	"cluster":            {},
	"trouble":            {},
	"cluster/protocol":   {"cluster"},
	"scheduler":          {"cluster"},
	"orchestrator":       {"cluster", "scheduler"},
	"ingress/plan":       {"cluster"},
	"ingress":            {"cluster", "ingress/plan", "trouble"},
	"ingress/lb":         {},
	"raftstore":          {"cluster", "cluster/protocol", "trouble"},
	"agent":              {"cluster", "cluster/protocol", "ingress", "ingress/plan", "trouble"},
	"manager/identity":   {"cluster"},
	"manager/dispatcher": {"cluster", "cluster/protocol", "trouble"},
	"manager/backup":     {"cluster", "cluster/protocol"},
	"manager/engineapi":  {"cluster", "cluster/protocol", "scheduler", "orchestrator", "raftstore", "manager/identity", "manager/backup"},
	"manager":            {"cluster", "cluster/protocol", "scheduler", "orchestrator", "raftstore", "manager/identity", "manager/dispatcher", "trouble"},
	"node/role":          {"cluster/protocol", "raftstore", "manager/identity", "trouble"},
	"node":               {"cluster", "cluster/protocol", "scheduler", "orchestrator", "raftstore", "manager", "manager/identity", "manager/dispatcher", "manager/engineapi", "manager/backup", "agent", "ingress", "ingress/plan", "trouble", "node/role"},
	"lab":                {},
	"sim":                {},
	"cmd/miniswarm":      {"node", "lab", "ingress/lb", "cluster", "scheduler", "manager/identity", "manager/backup"},
	"examples":           {"lab", "ingress/lb"},
	"benchmarks":         {"cluster", "cluster/protocol", "scheduler", "orchestrator", "raftstore", "manager", "lab", "node", "ingress", "ingress/plan", "examples"},
}

// pure rooms compute values from values. They may use of the standard library only what does no I/O, tells no time and
// starts nothing, and these modules.
var pure = []string{"cluster", "cluster/protocol", "cluster/template", "scheduler", "orchestrator", "ingress/plan"}

var pureImports = []string{
	"bytes", "cmp", "container/heap", "crypto/sha256", "encoding/base32", "encoding/base64", "encoding/binary", "encoding/hex", "encoding/json", "errors", "fmt", "hash/fnv", "hash/maphash", "io",
	"iter", "maps", "math", "math/big", "math/bits", "math/rand/v2", "net", "net/netip", "reflect", "regexp", "slices", "sort", "strconv", "strings", "text/tabwriter", "text/template", "text/template/parse", "time", "unicode", "unicode/utf8", "unsafe",
	"github.com/docker/docker/api/types/swarm", "github.com/docker/docker/api/types/network", "github.com/docker/docker/api/types/container", "github.com/docker/docker/api/types/mount",
	"github.com/docker/go-units", "github.com/tidwall/btree",
}

// doors are packages that only one room may import: each technology has one door.
var doors = map[string][]string{
	"github.com/docker/docker/client":       {"agent/docker", "cmd/miniswarm", "manager/engineapi", "lab"},
	"github.com/vishvananda/netlink":        {"ingress", "lab"},
	"github.com/google/nftables":            {"ingress"},
	"github.com/miekg/dns":                  {"ingress", "lab"},
	"go.etcd.io/raft/v3":                    {"raftstore"},
	"go.etcd.io/etcd/server/v3/storage/wal": {"raftstore"},
	"go.etcd.io/bbolt":                      {"agent"},
	"github.com/urfave/cli/v2":              {"cmd/miniswarm"},
	"github.com/docker/cli":                 {"cmd/miniswarm"},
}

// pkg is what go list tells of a package.
type pkg struct {
	ImportPath string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,Doc,GoFiles,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}

func roomOf(path string) string {
	best := ""
	for room := range mayImport {
		if (path == room || strings.HasPrefix(path, room+"/")) && len(room) > len(best) {
			best = room
		}
	}
	return best
}

func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		room := roomOf(path)
		if room == "" {
			t.Errorf("%s is in no room: add its room to mayImport, with what it may use", path)
			continue
		}
		for _, imp := range p.Imports {
			for door, rooms := range doors {
				if (imp == door || strings.HasPrefix(imp, door+"/")) && !slices.ContainsFunc(rooms, func(r string) bool { return path == r || strings.HasPrefix(path, r+"/") }) {
					t.Errorf("%s imports %s: only %s may", path, imp, strings.Join(rooms, ", "))
				}
			}
			ours, ok := strings.CutPrefix(imp, module)
			if !ok {
				continue
			}
			if other := roomOf(ours); other != room && !slices.Contains(mayImport[room], other) {
				t.Errorf("%s imports %s: room %s may use %v", path, ours, room, mayImport[room])
			}
		}
	}
}

func TestThePureRoomsStayPure(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		if !slices.Contains(pure, path) {
			continue
		}
		for _, imp := range p.Imports {
			if !strings.HasPrefix(imp, module) && !slices.Contains(pureImports, imp) {
				t.Errorf("%s imports %s: decisions stay free of I/O, clocks and goroutines", path, imp)
			}
		}
		for _, name := range p.GoFiles {
			checkPureFile(t, filepath.Join(p.Dir, name))
		}
	}
}

// checkPureFile refuses goroutines, channels, clocks and global randomness in a file.
func checkPureFile(t *testing.T, file string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt, *ast.ChanType, *ast.SelectStmt, *ast.SendStmt:
			t.Errorf("%s: goroutines and channels do not belong in a pure room", fset.Position(n.Pos()))
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Obj == nil {
				if x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
					t.Errorf("%s: time.%s: the time is an argument in a pure room", fset.Position(n.Pos()), n.Sel.Name)
				}
				if x.Name == "rand" && !strings.HasPrefix(n.Sel.Name, "New") && n.Sel.Name != "PCG" && n.Sel.Name != "ChaCha8" && n.Sel.Name != "Rand" {
					t.Errorf("%s: rand.%s: randomness is an argument in a pure room", fset.Position(n.Pos()), n.Sel.Name)
				}
				if x.Name == "net" && strings.HasPrefix(n.Sel.Name, "Dial") || x.Name == "net" && strings.HasPrefix(n.Sel.Name, "Listen") {
					t.Errorf("%s: net.%s: a pure room talks to nobody", fset.Position(n.Pos()), n.Sel.Name)
				}
			}
		}
		return true
	})
}

func TestEveryPackageTeaches(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", strings.TrimPrefix(p.ImportPath, module))
		}
	}
}
