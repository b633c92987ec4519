package docker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync"
	"time"

	"github.com/distribution/reference"
)

// answerLimit is how long a task whose image is on the node waits for the registry to say anything. Without it a registry
// that is away would delay every start by the engine's own limits, which are 10 s and more.
const answerLimit = 2 * time.Second

// errNoAnswer ends a pull whose registry said nothing in time.
var errNoAnswer = fmt.Errorf("the registry did not answer within %s", answerLimit)

var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// pinned says whether a reference names one particular image, so that a local one is surely the right one.
func pinned(ref string) bool {
	if imageID.MatchString(ref) {
		return true
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return false
	}
	_, ok := named.(reference.Digested)
	return ok
}

// Images fetches images, each once for all tasks that ask for it at the same time. It may be used concurrently.
type Images struct {
	engine Engine

	mu    sync.Mutex
	pulls map[pullKey]*pull // guarded by mu
}

// NewImages gives the images of an engine.
func NewImages(e Engine) *Images {
	return &Images{engine: e, pulls: map[pullKey]*pull{}}
}

type pullKey struct{ ref, auth string }

// pull is one running pull. It goes on while somebody waits for it.
type pull struct {
	cancel   context.CancelFunc
	answered chan struct{} // closed when the registry has answered
	done     chan struct{} // closed after err is set
	err      error
	waiting  int // guarded by Images.mu
}

// Fetch pulls an image. present says that the node has some image under this name already, which makes a silent
// registry an error after answerLimit.
func (im *Images) Fetch(ctx context.Context, ref, auth string, present bool) error {
	p := im.join(ctx, pullKey{ref, auth})
	defer im.leave(p)
	var silence <-chan time.Time
	if present {
		t := time.NewTimer(answerLimit)
		defer t.Stop()
		silence = t.C
	}
	for answered := p.answered; ; {
		select {
		case <-p.done:
			return p.err
		case <-answered:
			answered, silence = nil, nil
		case <-silence:
			return errNoAnswer
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (im *Images) join(ctx context.Context, key pullKey) *pull {
	im.mu.Lock()
	defer im.mu.Unlock()
	if p := im.pulls[key]; p != nil {
		p.waiting++
		return p
	}
	// The pull belongs to all who wait for it, and ends with the last of them.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &pull{cancel: cancel, answered: make(chan struct{}), done: make(chan struct{}), waiting: 1}
	im.pulls[key] = p
	go func() {
		p.err = im.engine.Pull(ctx, key.ref, key.auth, sync.OnceFunc(func() { close(p.answered) }))
		im.mu.Lock()
		if im.pulls[key] == p {
			delete(im.pulls, key)
		}
		im.mu.Unlock()
		close(p.done)
	}()
	return p
}

// leave gives the pull up. The last to leave cancels it and waits for its goroutine, so that none is left behind.
func (im *Images) leave(p *pull) {
	im.mu.Lock()
	p.waiting--
	last := p.waiting == 0
	if last {
		p.cancel()
		for key, q := range im.pulls {
			if q == p {
				delete(im.pulls, key) // a newcomer starts afresh
			}
		}
	}
	im.mu.Unlock()
	if last {
		<-p.done
	}
}

// ensure makes the image of a task present (swarm-semantics.md, 12.2): a pinned image that is there is taken as it is, for any
// other the registry is asked for news. A pull that fails is an error only if there is no image to fall back on; otherwise
// it is returned as warning.
func (im *Images) ensure(ctx context.Context, ref, auth string, offline bool) (warning, err error) {
	_, missing := im.engine.Image(ctx, ref)
	if errors.Is(missing, ErrUnavailable) || ctx.Err() != nil {
		return nil, missing
	}
	if missing == nil && (offline || pinned(ref)) {
		return nil, nil
	}
	pullErr := im.Fetch(ctx, ref, auth, missing == nil)
	switch {
	case pullErr == nil:
		return nil, nil
	case errors.Is(pullErr, ErrUnavailable) || ctx.Err() != nil:
		return nil, pullErr
	case missing == nil:
		return pullErr, nil
	}
	//lint:ignore ST1005 the engine's words, which clients match on
	return nil, fmt.Errorf("No such image: %s (%w)", ref, pullErr)
}
