"""What annotators share: learning from labelled cells, calibrated confidence, and labels for any other cells."""
