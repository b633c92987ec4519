package oracle

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/txtar"
)

// unexplained is the reason of a difference that was written down by -accept and that nobody has explained yet.
const unexplained = "UNEXPLAINED"

// script is one scenario.
type script struct {
	path string
	// sample, exclusive and fresh are as the package comment says; client is 0 for every docker command.
	sample, exclusive, fresh bool
	client                   int
	steps                    []*step
	files                    []txtar.File

	lines []string // as in the file, without files
}

// step is one command.
type step struct {
	first, last int // lines in the script, its differences not included
	end         int // the line after its differences
	host        string
	until       *regexp.Regexp
	quiet       bool
	set         string
	command     string
	differs     []difference
	// ends says that the script ends here on account of the difference.
	ends bool
}

// difference is what a step is expected to print differently.
type difference struct {
	client int // 0 for every docker command
	reason string
	lines  []string
}

// expected is the difference that is written down for a docker command, nil for none.
func (s *step) expected(client int) *difference {
	for i, d := range s.differs {
		if d.client == client || d.client == 0 {
			return &s.differs[i]
		}
	}
	return nil
}

var (
	stepLine    = regexp.MustCompile(`^(?:(until|set) (.*?) |(quiet) )?(vm\d)?\$ (.+)$`)
	differsLine = regexp.MustCompile(`^differs(?:\((\d+)\))? (.+)$`)
)

// readScript parses a file.
func readScript(path string) (*script, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := parseScript(data)
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	s.path = path
	return s, nil
}

func parseScript(data []byte) (*script, error) {
	ar := txtar.Parse(data)
	s := &script{files: ar.Files, lines: strings.Split(strings.TrimSuffix(string(ar.Comment), "\n"), "\n")}
	if !strings.HasPrefix(s.lines[0], "# ") {
		return nil, fmt.Errorf("1: a comment has to say what the script is about")
	}
	for i, line := range s.lines {
		if err := s.parseLine(i, line); err != nil {
			return nil, fmt.Errorf("%d: %w", i+1, err)
		}
	}
	if len(s.steps) == 0 {
		return nil, fmt.Errorf("%d: no step", len(s.lines))
	}
	return s, nil
}

func (s *script) parseLine(i int, line string) error {
	var last *step
	if len(s.steps) > 0 {
		last = s.steps[len(s.steps)-1]
	}
	switch m := stepLine.FindStringSubmatch(line); {
	case line == "" || strings.HasPrefix(line, "#"):
	case m != nil:
		st := &step{first: i, last: i, end: i + 1, quiet: m[3] != "", host: m[4], command: m[5]}
		switch m[1] {
		case "until":
			var err error
			if st.until, err = regexp.Compile("(?s)" + m[2]); err != nil {
				return err
			}
		case "set":
			st.set = m[2]
		}
		s.steps = append(s.steps, st)
	case last == nil:
		switch word, arg, _ := strings.Cut(line, " "); word {
		case "sample":
			s.sample = true
		case "exclusive":
			s.exclusive = true
		case "fresh":
			s.fresh = true
		case "client":
			var err error
			if s.client, err = strconv.Atoi(arg); err != nil {
				return fmt.Errorf("client %q: the major version is a number", arg)
			}
		default:
			return fmt.Errorf("%q is neither a step nor a word of a script's head", line)
		}
	case strings.HasPrefix(line, "differs"):
		m := differsLine.FindStringSubmatch(line)
		if m == nil {
			return fmt.Errorf("%q lacks the reason", line)
		}
		client, _ := strconv.Atoi(m[1]) // digits or nothing
		last.differs = append(last.differs, difference{client: client, reason: m[2]})
		last.end = i + 1
	case (line[0] == '-' || line[0] == '+') && len(last.differs) > 0:
		d := &last.differs[len(last.differs)-1]
		d.lines = append(d.lines, line)
		last.end = i + 1
	case line == "end" && len(last.differs) > 0:
		last.ends = true
		last.end = i + 1
	default:
		return fmt.Errorf("%q is no step", line)
	}
	return nil
}

// rewritten gives the script's text with the differences that were found in place of those that were expected: by
// step, then by docker command. Reasons that were given are kept.
func (s *script) rewritten(found map[*step]map[int][]string) []byte {
	var out []string
	next := 0
	for _, st := range s.steps {
		by, ran := found[st]
		if !ran {
			continue
		}
		out = append(out, s.lines[next:st.last+1]...)
		next = st.end
		out = append(out, st.blocks(by)...)
	}
	out = append(out, s.lines[next:]...)
	return txtar.Format(&txtar.Archive{Comment: []byte(strings.Join(out, "\n") + "\n"), Files: s.files})
}

// blocks are the lines that write a step's differences down.
func (s *step) blocks(by map[int][]string) []string {
	clients := make([]int, 0, len(by))
	same := true
	for c, lines := range by {
		clients = append(clients, c)
		same = same && slices.Equal(lines, by[clients[0]])
	}
	slices.Sort(clients)
	var out []string
	for _, c := range clients {
		if len(by[c]) == 0 {
			continue
		}
		reason := unexplained
		if d := s.expected(c); d != nil {
			reason = d.reason
		}
		word := "differs"
		if !same {
			word = fmt.Sprintf("differs(%d)", c)
		}
		out = append(append(out, word+" "+reason), by[c]...)
		if same {
			break
		}
	}
	if s.ends && len(out) > 0 {
		out = append(out, "end")
	}
	return out
}
