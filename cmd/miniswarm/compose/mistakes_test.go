package compose

import (
	"strings"
	"testing"
)

// What is wrong with the YAML of a file is said at once, however long it is: to try every line of this one would take a
// minute.
func TestALongFileThatIsNoYAML(t *testing.T) {
	for _, more := range []int{10, 20_000} {
		text := "services:\n  a:\n    image: \"x\n" + strings.Repeat("    b: c\n", more)
		_, err := Load(Options{Files: []File{{Name: "f", Text: []byte(text)}}})
		if err == nil || err.Error() != "f:3: found unexpected end of stream" {
			t.Errorf("%d lines more: %v", more, err)
		}
	}
}
