package main

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/docker/cli/templates"
)

// printTemplate prints v by one of Docker's --format templates, with a newline.
func printTemplate(w io.Writer, format string, v any) error {
	t, err := templates.Parse(format)
	if err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	if err := t.Execute(w, v); err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// counted is a number of things: "1 node", "2 nodes".
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
