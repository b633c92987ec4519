package house

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/reliability.md names a test for each of the 48 faults, or says why there is none, and every test that it names exists.
func TestEveryFaultIsTestedOrExplained(t *testing.T) {
	text, err := os.ReadFile("docs/reliability.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w+)`")
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 4 {
			rows[strings.TrimSpace(cells[1])] = line
		}
	}
	for i := 1; i <= 48; i++ {
		row, ok := rows[fmt.Sprintf("F%d", i)]
		if !ok || !name.MatchString(row) && !strings.Contains(row, "not tested: ") {
			t.Errorf("F%d has no test and no reason: %q", i, row)
		}
	}
	for _, m := range name.FindAllStringSubmatch(string(text), -1) {
		files, err := filepath.Glob(filepath.Join(filepath.FromSlash(m[1]), "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(source), "func "+m[2]+"(")
		}
		if !found {
			t.Errorf("docs/reliability.md names %s of package %s, which is not there", m[2], m[1])
		}
	}
}
