package storage

import (
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kstorage "k8s.io/apiserver/pkg/storage"

	"shoal/consensus"
)

// Messages that clients and upstream's suite know by their wording.
const (
	listExpired     = "The resourceVersion for the provided list is too old."
	watchExpired    = "The resourceVersion for the provided watch is too old."
	continueExpired = "The provided continue parameter is too old to display a consistent list result. " +
		"You can start a new list without the continue parameter"
	continueInconsistent = continueExpired + ", or use the continue token in this response to retrieve the remainder of the results. " +
		"Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted " +
		"between the time the first chunk was returned and now may show up in the list."
)

// apiError gives an error of the consensus layer the form in which a client should
// see it: 503 where the request did not happen and may be repeated, 504 where it
// may have happened. Other errors, the context's among them, are returned as they
// are.
func apiError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, consensus.ErrUnknownOutcome):
		return apierrors.NewTimeoutError(err.Error(), 1)
	case errors.Is(err, consensus.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(err.Error())
	case errors.Is(err, consensus.ErrNoQuorum),
		errors.Is(err, consensus.ErrClockSkew),
		errors.Is(err, consensus.ErrUnknownShard),
		errors.Is(err, consensus.ErrClosed):
		return apierrors.NewServiceUnavailable(err.Error())
	default:
		return err
	}
}

// listError is apiError for a list: a revision that the history no longer reaches
// is 410, with a token to go on from where a continued list stopped.
func listError(err error, continueKey, keyPrefix string) error {
	if !errors.Is(err, consensus.ErrCompacted) {
		return apiError(err)
	}
	if continueKey == "" {
		return apierrors.NewResourceExpired(listExpired)
	}
	// -1 stands for the newest revision; 0 would be a token without a revision
	token, encodeErr := kstorage.EncodeContinue(continueKey, keyPrefix, -1)
	if encodeErr != nil {
		return apierrors.NewResourceExpired(continueExpired + ".")
	}
	expired := apierrors.NewResourceExpired(continueInconsistent)
	expired.ErrStatus.Continue = token
	return expired
}

// watchError is apiError for a running watch.
func watchError(err error) error {
	switch {
	case errors.Is(err, consensus.ErrCompacted):
		return apierrors.NewResourceExpired(watchExpired)
	case errors.Is(err, consensus.ErrSlowWatcher), errors.Is(err, errUnordered):
		return apierrors.NewTimeoutError(err.Error(), 1)
	default:
		return apiError(err)
	}
}
