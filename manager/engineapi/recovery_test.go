package engineapi

import (
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/miniswarm/miniswarm/manager/backup"
)

func TestBackupsAndRecoveriesAreTheNodesOwn(t *testing.T) {
	s, err := New(Config{Local: &fakeLocal{}, Engine: "unix:///nowhere", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Socket())
	defer server.Close()
	post := func(path, header, body string) (int, string, error) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if header != "" {
			req.Header.Set(backup.RecoverHeader, header)
		} else {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text), err
	}
	header := base64.URLEncoding.EncodeToString([]byte(`{"DryRun":true,"Secret":"hush"}`))
	for _, c := range []struct {
		path, header, body string
		status             int
		text               string
	}{
		{"/miniswarm/backup", "", `{"Secret":"s"}`, 200, "sealed with s"},
		{"/v1.41/miniswarm/backup", "", `{"Secret":"s"}`, 200, "sealed with s"},
		{"/miniswarm/backup", "", `{}`, 400, "no secret"},
		{"/miniswarm/recover", header, "the body", 200, `"ClusterID":"the body"`},
		{"/miniswarm/recover", header, "", 200, `"DryRun":true`},
		{"/miniswarm/recover", header[3:], "", 400, "is not JSON in base64"},
		{"/miniswarm/rejoin", "", `{"Addr":"a"}`, 204, ""},
		{"/miniswarm/rejoin", "", `{}`, 400, "no address"},
	} {
		status, text, err := post(c.path, c.header, c.body)
		if err != nil || status != c.status || !strings.Contains(text, c.text) || strings.Contains(text, "hush") {
			t.Errorf("POST %s %s: %d %s (%v), want %d %s", c.path, c.body, status, text, err, c.status, c.text)
		}
	}
	// What fails after the first byte has no status any more: the connection breaks.
	if status, text, err := post("/miniswarm/backup", "", `{"Secret":"breaks"}`); err == nil || !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		t.Errorf("a backup that broke off: %d %s (%v)", status, text, err)
	}
}
