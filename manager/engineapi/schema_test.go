package engineapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/spec"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/validate"
)

// apiDocument is the Engine API's own description, as the module of Docker's client carries it.
var apiDocument = sync.OnceValues(func() (*spec.Swagger, error) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/docker/docker").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	path := filepath.Join(strings.TrimSpace(string(dir)), "api", "swagger.yaml")
	loaded, err := loads.Spec(path)
	if err != nil {
		return nil, err
	}
	doc := loaded.Spec()
	amend(doc.Definitions)
	pruned := doc.Paths.Paths["/networks/prune"].Post.Responses.StatusCodeResponses[http.StatusOK].Schema
	none := pruned.Properties["NetworksDeleted"]
	none.Nullable = true // as amend does with the others
	pruned.Properties["NetworksDeleted"] = none
	return doc, spec.ExpandSpec(doc, &spec.ExpandOptions{RelativeBase: path})
})

// amend puts right where the document says something else than every Docker Engine does.
func amend(d spec.Definitions) {
	change := func(change func(*spec.Schema), path ...string) {
		s := d[path[0]]
		parents := []spec.Schema{s}
		for _, name := range path[1:] {
			s = s.Properties[name]
			parents = append(parents, s)
		}
		change(&s)
		for i := len(path) - 1; i > 0; i-- { // schemas are values: hand the change up
			parents[i-1].Properties[path[i]] = s
			s = parents[i-1]
		}
		d[path[0]] = s
	}
	null := func(s *spec.Schema) { s.Nullable = true }
	change(func(s *spec.Schema) { s.Required = nil }, "IDResponse")                   // "Id" in the document, "ID" on the wire
	change(func(s *spec.Schema) { s.Enum = nil }, "Service", "UpdateStatus", "State") // has no words for a rollback
	change(null, "ServiceCreateResponse", "Warnings")
	change(null, "ServiceUpdateResponse", "Warnings")
	for _, path := range [][]string{{"Network", "Containers"}, {"Network", "Options"}, {"IPAM", "Options"}, {"IPAM", "Config"}} {
		change(null, path...)
	}
	for _, name := range []string{"CredentialSpec", "SELinuxContext"} {
		change(null, "TaskSpec", "ContainerSpec", "Privileges", name)
	}
}

// swarmPaths are the first segments of what is answered here, in whole or in part.
var swarmPaths = []string{"swarm", "nodes", "services", "tasks", "secrets", "configs", "networks", "info", "version"}

// checkAnswer holds an answer of the swarm part against the Engine API's document: its body against the schema of its
// status, or of errors, and its lists and times against what every client of Docker relies on. Answers that are streams are
// not looked into.
func checkAnswer(method, path string, a answer) error {
	u, err := url.Parse(path)
	if err != nil {
		return err
	}
	plain := versionPrefix.ReplaceAllString(u.Path, "/")
	segments := strings.Split(strings.TrimPrefix(plain, "/"), "/")
	if method == http.MethodHead || !slices.Contains(swarmPaths, segments[0]) || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") {
		return nil
	}
	doc, err := apiDocument()
	if err != nil {
		return err
	}
	schema := doc.Definitions["ErrorResponse"]
	if a.status < 300 {
		op := operation(doc, method, segments)
		if op == nil {
			return nil // not of Docker's API
		}
		resp, ok := op.Responses.StatusCodeResponses[a.status]
		if !ok {
			return fmt.Errorf("the API's document knows no status %d here", a.status)
		}
		if resp.Schema == nil {
			return fmt.Errorf("the API's document knows no body here: %s", a.body)
		}
		schema = *resp.Schema
	}
	body, err := decodeAny(a.body)
	if err != nil {
		return err
	}
	if list, isList := body.([]any); schema.Type.Contains("array") && (!isList || list == nil) {
		return fmt.Errorf("want a list: %s", a.body)
	}
	return checkBody(&schema, body)
}

// decodeAny keeps numbers as they are written: times in nanoseconds are none that a float64 can hold.
func decodeAny(text string) (v any, err error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	err = dec.Decode(&v)
	return v, err
}

func checkBody(schema *spec.Schema, body any) error {
	if err := validate.AgainstSchema(schema, body, strfmt.Default); err != nil {
		return fmt.Errorf("%w\nin %v", err, body)
	}
	return checkTimes(body, "")
}

// checkEvent holds one line of /events against the document.
func checkEvent(line []byte) error {
	doc, err := apiDocument()
	if err != nil {
		return err
	}
	body, err := decodeAny(string(line))
	if err != nil {
		return err
	}
	schema := doc.Definitions["EventMessage"]
	return checkBody(&schema, body)
}

// operation finds what the document says of a path; a literal segment goes before a variable.
func operation(doc *spec.Swagger, method string, segments []string) *spec.Operation {
	best, literals := (*spec.Operation)(nil), -1
	for pattern, item := range doc.Paths.Paths {
		parts := strings.Split(strings.TrimPrefix(pattern, "/"), "/")
		if len(parts) != len(segments) {
			continue
		}
		n := 0
		for i, part := range parts {
			switch {
			case strings.HasPrefix(part, "{"):
			case part == segments[i]:
				n++
			default:
				n = -len(parts) - 1
			}
		}
		op := map[string]*spec.Operation{http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodDelete: item.Delete}[method]
		if n > literals && op != nil {
			best, literals = op, n
		}
	}
	return best
}

// checkTimes looks for times that are not RFC 3339 with nanoseconds in UTC.
func checkTimes(v any, name string) error {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			if err := checkTimes(inner, k); err != nil {
				return err
			}
		}
	case []any:
		for _, inner := range v {
			if err := checkTimes(inner, name); err != nil {
				return err
			}
		}
	case string:
		if !slices.Contains([]string{"CreatedAt", "UpdatedAt", "StartedAt", "CompletedAt", "Timestamp", "LastExecution"}, name) {
			return nil
		}
		if at, err := time.Parse(time.RFC3339Nano, v); err != nil || at.Location() != time.UTC {
			return errors.Join(fmt.Errorf("%s %q is no time as Docker writes it", name, v), err)
		}
	}
	return nil
}

func TestTheDocumentIsRead(t *testing.T) {
	ok := answer{status: 200, header: http.Header{"Content-Type": {"application/json"}}}
	for _, c := range []struct{ method, path, body, want string }{
		{"GET", "/v1.41/services?status=1", `[]`, ""},
		{"GET", "/services", `null`, "want a list"},
		{"GET", "/services", `[{"ID":7}]`, "ID in body must be of type string"},
		{"GET", "/tasks/x", `{"Status":{"Timestamp":"yesterday"}}`, "is no time as Docker writes it"},
		{"GET", "/tasks/x", `{"CreatedAt":"2026-01-01T00:00:00+01:00"}`, "is no time as Docker writes it"},
		{"POST", "/services/create", `{}`, "knows no status 200"},
	} {
		a := ok
		a.body = c.body
		err := checkAnswer(c.method, c.path, a)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s %s: %v, want %q", c.method, c.path, c.body, err, c.want)
		}
	}
}
