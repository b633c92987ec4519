package engineapi

import (
	"net/http"
	"strings"

	"github.com/docker/docker/api/types/filters"
)

// listFilters reads the filters parameter and refuses keys that the list does not know.
func listFilters(r *http.Request, accepted ...string) (filters.Args, error) {
	args, err := filters.FromJSON(r.URL.Query().Get("filters"))
	if err != nil {
		return args, errorf(http.StatusBadRequest, "%v", err)
	}
	known := make(map[string]bool, len(accepted))
	for _, k := range accepted {
		known[k] = true
	}
	if err := args.Validate(known); err != nil {
		return args, errorf(http.StatusBadRequest, "%v", err)
	}
	return args, nil
}

// prefixed says whether the value of a key's filter begins text; true where the key is not filtered.
func prefixed(args filters.Args, key, text string) bool {
	values := args.Get(key)
	if len(values) == 0 {
		return true
	}
	for _, v := range values {
		if strings.HasPrefix(text, v) {
			return true
		}
	}
	return false
}

// labelled says whether labels have every label that the key asks for: "name", or "name=value".
func labelled(args filters.Args, key string, labels map[string]string) bool {
	for _, want := range args.Get(key) {
		name, value, _ := strings.Cut(want, "=")
		have, ok := labels[name]
		if !ok || value != "" && have != value {
			return false
		}
	}
	return true
}
