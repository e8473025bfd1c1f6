"""Files and names from elsewhere: what is opened, how much is read, how whole files are written."""
