package manager

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/miniswarm/miniswarm/manager/identity"
	"github.com/miniswarm/miniswarm/raftstore"
)

// TestMembersSpeakForThemselves: by the certificate, whatever a header says.
func TestMembersSpeakForThemselves(t *testing.T) {
	h := asItself(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	for node, want := range map[string]int{"n1": http.StatusNoContent, "": http.StatusNoContent, "n2": http.StatusForbidden} {
		r := httptest.NewRequest(http.MethodGet, "/raft/stream", nil)
		r = r.WithContext(identity.NewContext(r.Context(), identity.Identity{NodeID: "n1", Role: identity.Manager}))
		r.Header.Set(raftstore.HeaderNode, node)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("n1 as %q: status %d, want %d", node, w.Code, want)
		}
	}
}
