package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func get(t *testing.T, resp *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestNotesAreKept(t *testing.T) {
	notes := filepath.Join(t.TempDir(), "notes")
	for range 2 { // the second store takes over the first one's file
		store := httptest.NewServer(newStore(notes, "pw"))
		defer store.Close()
		web := httptest.NewServer(newPage(Settings{Title: "Board", Store: store.URL, Replica: "web.1"}, "pw"))
		defer web.Close()
		resp, err := http.PostForm(web.URL, url.Values{"note": {"<b>hello</b>  there\nworld"}})
		code, body := get(t, resp, err)
		if code != 200 || !strings.Contains(body, "<li>&lt;b&gt;hello&lt;/b&gt; there world</li>") || !strings.Contains(body, "shown by web.1") {
			t.Errorf("%d\n%s", code, body)
		}
	}
	if data, err := os.ReadFile(notes); err != nil || strings.Count(string(data), "\n") != 2 {
		t.Errorf("%q, %v", data, err)
	}
}

func TestWithoutThePasswordThereIsNothing(t *testing.T) {
	store := httptest.NewServer(newStore(filepath.Join(t.TempDir(), "notes"), "pw"))
	defer store.Close()
	resp, err := http.Get(store.URL + "/notes")
	if code, body := get(t, resp, err); code != 401 {
		t.Errorf("no password: %d %s", code, body)
	}
	web := httptest.NewServer(newPage(Settings{Store: store.URL, Replica: "web.1"}, "wrong"))
	defer web.Close()
	resp, err = http.Get(web.URL)
	if code, body := get(t, resp, err); code != 502 || !strings.Contains(body, "web.1: the store says 401 Unauthorized: wrong password") {
		t.Errorf("wrong password: %d %s", code, body)
	}
	resp, err = http.PostForm(web.URL, url.Values{"note": {strings.Repeat("x", 2*maxNote)}})
	if code, _ := get(t, resp, err); code != 502 {
		t.Errorf("a long note with the wrong password: %d", code)
	}
}

func TestSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for text, want := range map[string]string{
		`{"Store":"http://store:9000","Title":"x"}`: "",
		`{}`: path + " names no Store",
		`{`:  "unexpected end of JSON input",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := readSettings(path)
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != "read the settings: "+want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := os.WriteFile(path, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pw, err := readPassword(path); err != nil || pw != "s3cret" {
		t.Errorf("%q, %v", pw, err)
	}
}
